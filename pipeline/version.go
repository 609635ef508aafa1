package pipeline

import "fmt"

// Unsupported says why this version cannot carry out the rule, which the planner knows; "" = it can.
func (r Rule) Unsupported() string {
	switch r.Action {
	case OnMessageFetchForPubsub, OnMessageAckedForPubsub:
		return fmt.Sprintf("%s: pub/sub mode is not in this version: use %s and %s", r.Action, OnMessageFetchForQueue, OnMessageAckedForQueue)
	case OnAckedDelete:
		return fmt.Sprintf("%s: is not in this version: leave it out", r.Action)
	case OnClientConnected, OnClientDisconnected, OnSubscribeLookup, OnRetainLookup, OnSubscribeStore, OnUnsubscribeDelete,
		OnMessageFetchForQueue, OnMessagePublish, OnMessageStore, OnMessageRetain, OnRetainDelete, OnMessageAckedForQueue,
		SaveOfflineMessages:
	}
	return ""
}
