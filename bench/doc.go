// Package bench holds the benchmarks of the whole: what "make bench" runs. Each measures ours against a ceiling, or against a
// target of ARCHITECTURE.md, in one run, several times in turn, and reports medians; a table stands at the end, and as JSON in
// the file that RESTANTE_BENCH_JSON names. They hold no figure: a machine that is busy is no fault.
//
// Those that name a store or ingest need real servers, which "make bench" starts; they are found as package stack finds them.
// The short sizes are the usual ones; RESTANTE_BENCH_ROWS, _ITEMS, _EVENTS, _STORED and _MESSAGES ask for others.
package bench
