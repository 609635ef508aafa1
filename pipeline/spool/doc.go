// Package spool keeps what ingest takes on disk while Kafka is away.
//
// A [Producer] stands before the one that appends to Kafka. While Kafka answers it passes records on and is not noticed. When the
// oldest record has waited for too long, all that is on its way goes to the disk, in its order, and so does everything that comes
// after: a record counts as durable once it is synced. Behind that the records are appended to Kafka, oldest first; nothing newer
// overtakes them. When all of them are durable there, records are passed on again.
//
// What is on the disk survives the process. It is repeated rather than lost: after a kill the last moments of a drain come again.
package spool
