// Package topicindex finds the topics that match a filter in a tree of topic levels, one row a level: the table
// mqtt_topic_node of a store. It knows the shape of the tree and how to walk it; the store keeps the rows.
//
// A row (parent, level) says that some topic has that level below that parent. The key of the parent is the root's mark and
// the levels above, each with its slash: the topic "t/1/x" has the rows ("#", "t"), ("#t/", "1") and ("#t/1/", "x"). A key is
// never empty, and no key of one root is a key of the other.
package topicindex

import (
	"strings"

	"github.com/restante/restante/event"
)

// Root marks one tree in the table.
type Root string

// The trees of a store.
const (
	Messages Root = "#" // topics of stored messages
	Retained Root = "+" // topics of retained messages
)

// maxDepth is how many levels of a topic are rows of their own; the rest is the last row's level, slashes and all. It bounds
// what a topic of 65,535 slashes can cost.
const maxDepth = 32

// Node is one row below its parent.
type Node struct {
	// Level is one level of a topic (at the greatest depth: all the levels that are left).
	Level string
	// Leaf says that a topic ends here.
	Leaf bool
	// Inner says that topics go on below.
	Inner bool
}

// Row is a node with the key of its parent.
type Row struct {
	Parent string
	Node
}

// Rows are the rows that a topic needs, from the root down. A store that writes them must not take away a flag that another
// topic set: rows are joined flag by flag.
func Rows(root Root, t event.Topic) []Row {
	text, at := t.String(), 0
	var rows []Row
	for {
		parent := string(root) + text[:at]
		n := strings.IndexByte(text[at:], '/')
		if n < 0 || len(rows) == maxDepth-1 {
			return append(rows, Row{parent, Node{Level: text[at:], Leaf: true}})
		}
		rows = append(rows, Row{parent, Node{Level: text[at : at+n], Inner: true}})
		at += n + 1
	}
}

// TopicOf is the text of the topic that ends at the row.
func (r Row) TopicOf() string { return r.Parent[1:] + r.Level }

// Below is the key of the parent of all that lies below the row.
func (r Row) Below() string { return r.Parent + r.Level + "/" }
