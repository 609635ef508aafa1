package dead_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
)

func TestFiltersSelect(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		p.bury(writer, topics.Messages, 1, p.publish("t/1", "first"), pipeline.ReasonRejected)
		time.Sleep(time.Hour)
		noon := time.Now()
		p.bury("restante.writer.other", topics.Messages, 2, p.publish("t/2", "second"), pipeline.ReasonMalformed)
		p.bury(writer, topics.Sessions, 3, p.subscribe("device", "t/+"), pipeline.ReasonRejected)
		p.oversize(p.publish("u/1", "third"))
		one, zero := 1, 0
		for sentence, c := range map[string]struct {
			f    dead.Filter
			want []string
		}{
			"nothing":                      {dead.Filter{}, []string{"device", "t/1", "t/2", "u/1"}},
			"a reason":                     {dead.Filter{Reason: pipeline.ReasonRejected}, []string{"device", "t/1"}},
			"a group":                      {dead.Filter{By: "restante.writer.other"}, []string{"t/2"}},
			"a topic":                      {dead.Filter{Topic: filter(t, "t/1")}, []string{"device", "t/1"}},
			"a wildcard":                   {dead.Filter{Topic: filter(t, "+/1")}, []string{"device", "t/1", "u/1"}},
			"a topic of no subscription":   {dead.Filter{Topic: filter(t, "u/1")}, []string{"u/1"}},
			"a publisher":                  {dead.Filter{Client: "sender"}, []string{"t/1", "t/2", "u/1"}},
			"a subscriber":                 {dead.Filter{Client: "device"}, []string{"device"}},
			"a client that is a topic":     {dead.Filter{Client: "t/1"}, nil},
			"since":                        {dead.Filter{Since: noon}, []string{"device", "t/2", "u/1"}},
			"until":                        {dead.Filter{Until: noon}, []string{"t/1"}},
			"a partition of the origin":    {dead.Filter{Partition: &one}, []string{"device", "t/1", "t/2"}},
			"another one":                  {dead.Filter{Partition: &zero}, nil},
			"a state":                      {dead.Filter{State: dead.Dropped}, nil},
			"two things, of which one not": {dead.Filter{Reason: pipeline.ReasonRejected, Client: "nobody"}, nil},
		} {
			var got []string
			for _, l := range p.list(c.f) {
				got = append(got, string(l.Record.Key))
				if byPlace := p.list(dead.Filter{Places: []dead.Place{l.At}}); len(byPlace) != 1 || byPlace[0].At != l.At {
					t.Errorf("%s: letter %s is not found by its name", sentence, l.At)
				}
				if one, found, err := p.open(p.cluster.Client()).Letter(t.Context(), l.At); err != nil || !found || one.At != l.At {
					t.Errorf("%s: letter %s is not found: %v", sentence, l.At, err)
				}
			}
			slices.Sort(got)
			same(t, sentence, c.want, got)
		}
		if _, found, err := p.open(p.cluster.Client()).Letter(t.Context(), dead.Place{Part: 0, Offset: 1000}); err != nil || found {
			t.Errorf("a letter that is not there: %v, %v", found, err)
		}
		if _, found, err := p.open(p.cluster.Client()).Letter(t.Context(), dead.Place{Part: 99}); err != nil || found {
			t.Errorf("a partition that is not there: %v, %v", found, err)
		}
	})
}

func TestLettersThatGoWhileTheyAreReadAreAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t)
		for i := range 3 {
			p.bury(writer, topics.Messages, int64(i), p.publish("t/1", "x"), pipeline.ReasonRejected)
		}
		at := pipeline.TP{Topic: topics.Dead, Part: p.list(dead.Filter{})[0].At.Part}
		box := p.open(p.cluster.Client())
		p.cluster.Retain(at, 1)
		err := box.Each(t.Context(), dead.Filter{}, func(dead.Letter) error { return nil })
		if !errors.Is(err, pipeline.ErrGap) || !strings.Contains(err.Error(), "begin again") {
			t.Errorf("got %v", err)
		}
		if n := len(p.list(dead.Filter{})); n != 2 {
			t.Errorf("%d letters are left, want 2", n)
		}
	})
}

func TestThePageNamesEveryReasonToLeaveALetter(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/deadletters.md")
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, f := range dead.Fates {
		if !strings.HasPrefix(string(f), "left_") {
			continue
		}
		if left++; !strings.Contains(string(text), "| `"+string(f)+"` |") {
			t.Errorf("docs/deadletters.md does not explain %s", f)
		}
	}
	if left != 7 {
		t.Errorf("%d reasons to leave a letter", left)
	}
}

func TestNamesOfLettersAreReadBack(t *testing.T) {
	t.Parallel()
	for _, p := range []dead.Place{{}, {Part: 3, Offset: 1 << 40}} {
		if got, err := dead.ParsePlace(p.String()); err != nil || got != p {
			t.Errorf("%s is read as %v: %v", p, got, err)
		}
	}
	for _, s := range []string{"", "1", "/", "1/", "/1", "-1/2", "1/-2", "1/2/3", "a/b"} {
		if p, err := dead.ParsePlace(s); err == nil {
			t.Errorf("%q is read as %v", s, p)
		}
	}
}
