package topicindex

import (
	"context"
	"fmt"
	"strings"

	"github.com/restante/restante/event"
)

// Nodes reads the rows of the index.
type Nodes interface {
	// Child returns one row of a parent, and false when it is not there.
	Child(ctx context.Context, parent, level string) (Node, bool, error)
	// Children returns up to limit rows of a parent whose level is from or greater, in ascending byte order of level.
	// Fewer than limit = there are no more.
	Children(ctx context.Context, parent, from string, limit int) ([]Node, error)
}

// page is how many children are read at once.
const page = 256

// Walk returns, in ascending order of their text, up to limit topics after the given one that match the filter. It reads a
// row for each literal level, a range for '+', a subtree for '#'.
func Walk(ctx context.Context, n Nodes, root Root, f event.Filter, after event.Topic, limit int) ([]event.Topic, error) {
	if f.IsZero() || limit < 1 {
		return nil, nil
	}
	w := &walk{nodes: n, root: string(root), filter: f, want: f.Levels(), after: after.String(), limit: limit}
	// Nothing has to be read of the literal levels at the beginning but the last one.
	start := 0
	for start < len(w.want)-1 && start < maxDepth-1 && !wild(w.want[start+1]) && !wild(w.want[start]) {
		start++
	}
	prefix := ""
	if start > 0 {
		prefix = strings.Join(w.want[:start], "/") + "/"
	}
	if err := w.below(ctx, prefix, start, start); err != nil {
		return nil, fmt.Errorf("walk the topic index for %q: %w", clip(f.String()), err)
	}
	return w.found, nil
}

type walk struct {
	nodes  Nodes
	root   string
	filter event.Filter
	want   []string
	after  string
	limit  int
	found  []event.Topic
}

func wild(level string) bool { return level == "+" || level == "#" }

func (w *walk) full() bool { return len(w.found) >= w.limit }

// below visits what lies under prefix: depth levels are above it, and want[at] is the level wanted.
//
// In text order the topics below "a" do not come right behind "a": "a!b" lies between "a" and "a/b", for '!' is less than '/'.
// Such a sibling begins with the whole of "a", so the subtrees that wait for it form a stack, the least on top.
func (w *walk) below(ctx context.Context, prefix string, depth, at int) error {
	parent := w.root + prefix
	if level := w.want[at]; !wild(level) && depth < maxDepth-1 {
		c, ok, err := w.nodes.Child(ctx, parent, level)
		if err != nil || !ok {
			return err
		}
		w.leaf(prefix, c)
		return w.subtree(ctx, prefix, c, depth, at)
	}
	waiting, from, err := w.resume(ctx, prefix, parent)
	if err != nil {
		return err
	}
	for !w.full() {
		children, err := w.nodes.Children(ctx, parent, from, page)
		if err != nil {
			return err
		}
		for _, c := range children {
			if depth == 0 && strings.HasPrefix(c.Level, "$") {
				continue // a leading wildcard does not match these
			}
			for len(waiting) > 0 && waiting[len(waiting)-1].Level+"/" < c.Level {
				top := waiting[len(waiting)-1]
				waiting = waiting[:len(waiting)-1]
				if err := w.subtree(ctx, prefix, top, depth, at); err != nil {
					return err
				}
			}
			w.leaf(prefix, c)
			if c.Inner {
				waiting = append(waiting, c)
			}
			if w.full() {
				return nil
			}
		}
		if len(children) < page {
			break
		}
		from = children[len(children)-1].Level + "\x00" // the least text behind it
	}
	for i := len(waiting) - 1; i >= 0 && !w.full(); i-- {
		if err := w.subtree(ctx, prefix, waiting[i], depth, at); err != nil {
			return err
		}
	}
	return nil
}

// resume says where the children of prefix go on behind w.after: from which level, and which subtrees of lesser levels are
// not done. Those are levels that the level of w.after begins with, followed by a byte below '/'.
func (w *walk) resume(ctx context.Context, prefix, parent string) (waiting []Node, from string, err error) {
	rest, inside := strings.CutPrefix(w.after, prefix)
	if !inside {
		return nil, "", nil // all of it lies behind: subtree skips what lies before
	}
	level, _, _ := strings.Cut(rest, "/")
	for i := range len(level) {
		if level[i] >= '/' {
			continue
		}
		c, ok, err := w.nodes.Child(ctx, parent, level[:i])
		if err != nil {
			return nil, "", err
		}
		if ok && c.Inner && (prefix != "" || !strings.HasPrefix(c.Level, "$")) {
			waiting = append(waiting, c)
		}
	}
	return waiting, level, nil
}

// leaf takes the topic that ends at c, when it is wanted.
func (w *walk) leaf(prefix string, c Node) {
	if !c.Leaf || w.full() {
		return
	}
	text := prefix + c.Level
	if text <= w.after {
		return
	}
	t, err := event.ParseTopic(text)
	if err != nil {
		return // not written by us
	}
	if w.filter.Match(t) {
		w.found = append(w.found, t)
	}
}

// subtree visits what lies below c, unless it lies before w.after as a whole or no topic there can match.
func (w *walk) subtree(ctx context.Context, prefix string, c Node, depth, at int) error {
	if !c.Inner || w.full() {
		return nil
	}
	below := prefix + c.Level + "/"
	if below < w.after && !strings.HasPrefix(w.after, below) {
		return nil
	}
	if w.want[at] != "#" {
		if at++; at == len(w.want) {
			return nil
		}
	}
	return w.below(ctx, below, depth+1, at)
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
