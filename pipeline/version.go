package pipeline

import "fmt"

// Unsupported says why this version cannot carry out the rule, which the planner knows; "" = it can.
func (r Rule) Unsupported() string {
	switch r.Action {
	case OnMessageFetchForPubsub, OnMessageAckedForPubsub:
		return fmt.Sprintf("%s: pub/sub mode is not in this version: use %s and %s", r.Action, OnMessageFetchForQueue, OnMessageAckedForQueue)
	case OnAckedDelete:
		return fmt.Sprintf("%s: is not in this version: leave it out", r.Action)
	case OnMessageFetchForQueue:
		if r.Hook != SessionSubscribed {
			return fmt.Sprintf("%s on %s: is not in this version: bind it to %s", r.Action, r.Hook, SessionSubscribed)
		}
	case OnClientConnected, OnClientDisconnected, OnSubscribeLookup, OnRetainLookup, OnSubscribeStore, OnUnsubscribeDelete, OnMessagePublish, OnMessageStore,
		OnMessageRetain, OnRetainDelete, OnMessageAckedForQueue, SaveOfflineMessages:
	}
	return ""
}
