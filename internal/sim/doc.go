// Package sim runs the whole pipeline in one testing/synctest bubble, in virtual time, from one seed: ingests with their spools,
// writers and replayers as they are, on fakes behind the interfaces of package pipeline. A schedule of clients and faults is drawn
// first; every call of an interface is held back and let go one at a time, so that a seed always gives the same history; the history
// is judged when the bubble is over. It is all test code.
//
// Runs differ in what they have: queues always; spools, pub/sub, retained messages, the broker's own ids for replays, brokers that do
// not wait for ingest, clocks that are wrong, PUBACKs as evidence, messages that expire, each in some of them. That nothing is left
// untried is tested too, and that the judges see something: bugs are planted around the pipeline, one at a time, and must be found.
//
//	go test ./internal/sim                      300 seeds
//	go test ./internal/sim -run Pipeline -seed 17    one seed, with its history
//	go test ./internal/sim -run Pipeline -seed 17 -small    with what of its history it needs to fail
//	RESTANTE_SOAK=1 go test ./internal/sim      10,000 seeds
package sim
