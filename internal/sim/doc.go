// Package sim runs the whole pipeline in one testing/synctest bubble, in virtual time, from one seed: ingest, writers and
// replayers as they are, on fakes behind the interfaces of package pipeline. A schedule of clients and faults is drawn first;
// every call of an interface is held back and let go one at a time, so that a seed always gives the same history; the history
// is judged when the bubble is over. It is all test code.
//
//	go test ./internal/sim                      300 seeds
//	go test ./internal/sim -run Pipeline -seed 17    one seed, with its history
//	RESTANTE_SOAK=1 go test ./internal/sim      many more
package sim
