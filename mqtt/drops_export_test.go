package mqtt

// Drops is what is told of counters, without a connection.
func Drops(cfg SourceConfig) func(topic string, payload []byte) { return newDrops(cfg).tell }
