package pipeline

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/restante/restante/event"
)

const (
	// maxApart is how far a message id's time may lie from the time of its publish, and that from our clock.
	maxApart     = 5 * time.Minute
	repairedLife = 10 * time.Minute
	mostRepaired = 10_000 // in each half of that
)

// identities are the ids that did not fit, and got others. They are safe for concurrent use.
type identities struct {
	some atomic.Bool // no ack needs the lock as long as nothing was repaired

	repaired *SafeRecent[event.ID, event.ID] // as it came → as it is stored
	said     Rarely

	nodes sync.Map // of the brokers' nodes that have a gauge of their own, to themselves
	known atomic.Int32
}

// mostNodes bounds the brokers' nodes that have a gauge of their own: their names come from outside.
const (
	mostNodes  = 64
	otherNodes = "other"
)

// label is the value of a metric's label for a broker's node.
func (n *identities) label(node string) string {
	if _, ok := n.nodes.Load(node); ok {
		return node
	}
	if n.known.Load() >= mostNodes || n.known.Add(1) > mostNodes {
		return otherNodes
	}
	if _, ok := n.nodes.LoadOrStore(node, true); ok {
		n.known.Add(-1)
	}
	return node
}

func newIdentities() *identities {
	return &identities{repaired: NewSafeRecent[event.ID, event.ID](mostRepaired, repairedLife)}
}

// identify gives a publish whose id does not fit its time an id that does: with the other it would expire at once, or never, or lie
// behind every replay. Acks that come through this process within some minutes find it; later ones do not, and the replay
// of the message, which has the new id, is acknowledged by that.
func (i *Ingest) identify(e event.Published) event.Published {
	ahead := e.At.Sub(i.Now())
	i.Metrics.BrokerClock.WithLabelValues(i.ids.label(e.Source)).Set(ahead.Seconds())
	apart := e.ID.Time().Sub(e.At)
	repair := apart.Abs() > maxApart
	if !repair && ahead <= maxApart {
		return e
	}
	n := i.ids
	n.said.Say(func(before int) {
		i.Log.Warn("a broker's clock is wrong: set it by NTP", "source", e.Source, "published_ahead_of_us", ahead.Round(time.Second),
			"id_apart_from_publish", apart.Round(time.Second), "unsaid", before)
	})
	if repair {
		came := e.ID
		e.ID = came.WithTime(e.At)
		reason := idAhead
		if apart < 0 {
			reason = idBehind
		}
		i.Metrics.ReplacedIDs.WithLabelValues(reason).Inc()
		n.repaired.Put(came, e.ID)
		n.some.Store(true)
	}
	return e
}

// stored is the id under which a message is stored that the broker knows by another.
func (n *identities) stored(id event.ID) event.ID {
	if !n.some.Load() {
		return id
	}
	if other := n.repaired.Get(id); !other.IsZero() {
		return other
	}
	return id
}
