package mqtt

// Counter names something that the broker edge counts: what it drops, refuses or repairs. The set is closed, so that a
// metric can have all of them at zero from the start.
type Counter string

// What is counted.
const (
	CountReplay          Counter = "replay"           // a replay of ours that came back, recognised by its MAC
	CountForged          Counter = "forged"           // a publish that claims to be a replay and has no valid MAC
	CountOwnEvent        Counter = "own_event"        // a connect, subscribe or the like of our own clients
	CountOwnRefused      Counter = "own_refused"      // a publish by a client with our prefix that is no replay
	CountRefusedTopic    Counter = "refused_topic"    // a publish to a topic that cannot be
	CountRefusedFilter   Counter = "refused_filter"   // a subscribe (or fetch) with a filter that cannot be
	CountRefusedSize     Counter = "refused_size"     // a packet over the limit
	CountRefusedJSON     Counter = "refused_json"     // an event of a broker that cannot be made out
	CountIgnored         Counter = "ignored_event"    // an event of a broker that nothing here needs
	CountRefusedLine     Counter = "refused_line"     // a line of a broker's log, or a counter of it, that is not understood
	CountAmbiguous       Counter = "ambiguous_line"   // a line of a broker's log that can be read in several ways
	CountRefusedAnswer   Counter = "refused_answer"   // what came to a response topic and proves no replay
	CountUnmappedAck     Counter = "unmapped_ack"     // an ack, or a dropped delivery, that does not tell of which message
	CountRefusedClient   Counter = "refused_client"   // an event of a client id that cannot be
	CountRefusedID       Counter = "refused_id"       // a message with an id that cannot be
	CountRefusedRequest  Counter = "refused_request"  // a call that cannot be read, or with values that cannot be
	CountGap             Counter = "gap"              // a call that got no answer in time, or an event that the broker dropped on its way to us: it went on without us
	CountHeld            Counter = "held_envelope"    // a replay that was held back, since its alias could not be logged; it comes again
	CountUnavailable     Counter = "unavailable"      // a request that was not durable in time: the broker was told to repeat it
	CountRefusedAuth     Counter = "refused_auth"     // a request without the right token or signature
	CountRefusedPoison   Counter = "refused_poison"   // an event that the log can never take
	CountNotTaken        Counter = "not_taken"        // an event that was not taken since the source stops; not acknowledged
	CountBrokerDropped   Counter = "broker_dropped"   // a delivery, to whomever, that the broker's own counter says it has dropped
	CountLostAck         Counter = "lost_ack"         // an ack or disconnect that did not become durable
	CountDroppedQoS0     Counter = "dropped_qos0"     // a QoS 0 message dropped since the queue of a source was full
	CountDroppedInflight Counter = "dropped_inflight" // a delivery dropped since the client's in-flight store was full
	CountDroppedQueue    Counter = "dropped_queue"    // a delivery dropped since the client's write queue was full
	CountDroppedSize     Counter = "dropped_size"     // a delivery larger than the client takes
	CountSlowClient      Counter = "slow_client"      // a connection closed since its client did not read
)

// Counters are all of them.
func Counters() []Counter {
	return []Counter{
		CountReplay, CountForged, CountOwnEvent, CountOwnRefused, CountRefusedTopic, CountRefusedFilter, CountRefusedSize,
		CountRefusedJSON, CountIgnored, CountRefusedLine, CountAmbiguous, CountRefusedAnswer, CountUnmappedAck, CountRefusedClient, CountRefusedID, CountRefusedRequest,
		CountGap, CountHeld, CountUnavailable, CountRefusedAuth, CountRefusedPoison, CountNotTaken, CountBrokerDropped, CountLostAck, CountDroppedQoS0,
		CountDroppedInflight, CountDroppedQueue,
		CountDroppedSize, CountSlowClient,
	}
}
