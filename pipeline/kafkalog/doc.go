// Package kafkalog is the log of package pipeline on Kafka: consumer groups, reading, and an appending producer, over kafka-go.
// No type of kafka-go leaves it.
//
// A [Client] stands for one cluster and one set of credentials. It hands out a [pipeline.Group] per consumer group, a
// [pipeline.Log] for reading, and a [pipeline.Producer]; it also creates and verifies topics. Close it last.
//
// What holds:
//
//   - A commit belongs to one generation and goes over the one connection of that generation. It is never sent again over
//     another one, so a late copy of an older commit cannot move an offset back.
//   - "No committed offset" is only ever what the coordinator said. Any error on the way is an error.
//   - A partition has one produce request under way. A batch is sent until the brokers have it (acks=all), and nothing
//     overtakes it. Kafka-go has no idempotent producer: a batch whose answer is lost is written twice.
//   - The partition of a key is murmur2(key) mod the configured count, as Java's clients do with the live count. Partitions
//     that somebody adds get no records until the configuration says so.
package kafkalog
