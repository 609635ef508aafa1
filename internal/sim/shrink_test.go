package sim

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// shrink leaves actions out of a plan for as long as the same kind of promise is broken, and returns what the smallest one found gives.
// It tries no more than a few hundred runs, so the smallest there is may be smaller.
func shrink(t *testing.T, r result) result {
	t.Helper()
	kind := kindOf(r)
	tries := 300
	fails := func(actions []action) bool {
		if tries--; tries < 0 {
			return false
		}
		p := r.w.plan
		p.actions = actions
		got := simulate(t, p)
		if kindOf(got) != kind {
			return false
		}
		r = got
		return true
	}
	for n := max(len(r.w.plan.actions)/2, 1); tries > 0; n /= 2 {
		for at := 0; at < len(r.w.plan.actions); {
			all := r.w.plan.actions
			end := min(at+n, len(all))
			some := slices.Clone(all[:at])
			for _, a := range all[at:end] {
				if a.must {
					some = append(some, a)
				}
			}
			kept := len(some) - at
			some = append(some, all[end:]...)
			if len(some) == len(all) || !fails(some) {
				at = end
				continue
			}
			at += kept
		}
		if n <= 1 {
			break
		}
	}
	return r
}

// kindOf is what a run breaks first, without who and when.
func kindOf(r result) string {
	if len(r.bad) == 0 {
		return ""
	}
	kind, _, _ := strings.Cut(r.bad[0], ":")
	return kind
}

// need marks the actions without which nothing can be said: those that bring everything back.
func (p *plan) need() {
	for i := range p.actions {
		a := &p.actions[i]
		a.must = a.at == 0*time.Second && strings.HasSuffix(a.text, " starts") || a.at == chaos
	}
}
