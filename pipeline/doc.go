// Package pipeline is the flow: rules turn events into plans; a worker owns one partition and makes what its records lead to
// durable before it commits; a replayer hands stored messages over when a client subscribes.
//
// It talks to the log, the stores and the brokers through small interfaces of its own, so that all of it runs in one
// testing/synctest bubble. Two contexts run through it: ctx = take no more, work = finish what is held.
package pipeline
