package app

import (
	"errors"
)

// Process names for [Config.For].
const (
	ProcessIngest   = "ingest"
	ProcessWriter   = "writer"
	ProcessReplayer = "replayer"
	ProcessUp       = "up"
)

// For returns what the one process lacks in a valid configuration, as a [Faults]; nil when it can work.
func (c Config) For(process string) error {
	var faults Faults
	kafka := func() {
		if len(c.Kafka.Brokers) == 0 {
			faults.add("kafka.brokers", "is missing: the addresses of the Kafka brokers")
		}
	}
	store := func() {
		if len(c.Sinks) == 0 {
			faults.add("sinks", "is empty: name at least one sink")
		}
		if len(c.Rules) == 0 {
			faults.add("rules", "is empty: nothing would be stored or replayed")
		}
	}
	switch process {
	case ProcessIngest:
		kafka()
		c.needSource(&faults)
		c.needSecret(&faults)
	case ProcessWriter:
		kafka()
		store()
		c.noMemory(process, &faults)
	case ProcessReplayer:
		kafka()
		store()
		c.noMemory(process, &faults)
		c.needSecret(&faults)
		if c.Delivery.To == "direct" {
			faults.add("delivery.to", "direct reaches only a broker in the same process, as in restante up: use topic or prefix")
		} else {
			c.needBroker(&faults)
		}
	case ProcessUp:
		store()
		c.needSource(&faults)
		if c.Delivery.To != "direct" {
			c.needBroker(&faults)
		}
	default:
		return errors.New("no process is called " + process)
	}
	return faults.join()
}

func (c Config) needSource(faults *Faults) {
	if len(c.Sources) == 0 {
		faults.add("sources", "is empty: name at least one source")
	}
}

func (c Config) needBroker(faults *Faults) {
	if len(c.Delivery.MQTT.URL) == 0 {
		faults.add("delivery.mqtt.url", "is missing: the broker that stored messages are published to")
	}
}

// needSecret: a source that is not told who published knows a replay by its mark only.
func (c Config) needSecret(faults *Faults) {
	if c.Delivery.Secret != "" || c.Delivery.SecretFile != "" {
		return
	}
	if c.Delivery.Evidence == evidenceApp {
		faults.add("delivery.secret_file", "is missing: with evidence: app it keeps a client from acknowledging another's messages")
		return
	}
	for _, name := range sortedKeys(c.Sources) {
		if m := c.Sources[name].MQTT; m != nil && m.Decode != decodeEMQX {
			faults.add("delivery.secret_file", "is missing: source %s is not told who published and knows our replays by this key only", name)
			return
		}
	}
}

func (c Config) noMemory(process string, faults *Faults) {
	for _, name := range sortedKeys(c.Sinks) {
		if c.Sinks[name].Memory != nil {
			faults.add("sinks."+name+".type", "memory is not shared between processes, %s cannot use it: it is for restante up only", process)
		}
	}
}
