package kafkalog

// Partition is where a record of the key goes: murmur2(key) mod the configured number of partitions, as Java's producer does.
func Partition(key string, parts int) int { return partition([]byte(key), parts) }
