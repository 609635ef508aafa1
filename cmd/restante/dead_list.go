package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
)

// letterJSON is a letter as -o json shows it.
type letterJSON struct {
	Letter    string     `json:"letter"`
	State     string     `json:"state"`
	MarkedAt  *time.Time `json:"marked_at,omitempty"`
	BuriedAt  time.Time  `json:"buried_at"`
	Reason    string     `json:"reason,omitempty"`
	Error     string     `json:"error,omitempty"`
	By        string     `json:"by,omitempty"`
	Topic     string     `json:"kafka_topic,omitempty"`
	Partition *int       `json:"partition,omitempty"`
	Offset    *int64     `json:"offset,omitempty"`
	Key       *string    `json:"key,omitempty"`
	KeyBase64 string     `json:"key_base64,omitempty"` // of a key that is not UTF-8
	Type      string     `json:"type,omitempty"`
	ID        string     `json:"id,omitempty"`
	EventTime *time.Time `json:"event_time,omitempty"`
	Bytes     int        `json:"bytes"`
}

func letterOf(l *dead.Letter) letterJSON {
	j := letterJSON{
		Letter: l.At.String(), State: string(l.State), BuriedAt: l.BuriedAt, Reason: string(l.Reason), Error: l.Cause, By: l.By, Topic: l.Topic,
		Type: l.Header("ce_type"), ID: l.Header("ce_id"), Bytes: len(l.Record.Value),
	}
	if !l.MarkedAt.IsZero() {
		j.MarkedAt = &l.MarkedAt
	}
	if l.Offset != pipeline.NoOffset {
		j.Partition, j.Offset = &l.Part, &l.Offset
	}
	if at := l.EventTime(); !at.IsZero() {
		at = at.UTC()
		j.EventTime = &at
	}
	j.Key, j.KeyBase64 = textOrBase64(l.Record.Key)
	return j
}

// textOrBase64 is the text of what is UTF-8, else base64.
func textOrBase64(b []byte) (text *string, base string) {
	if !utf8.Valid(b) {
		return nil, base64.StdEncoding.EncodeToString(b)
	}
	s := string(b)
	return &s, ""
}

// listed is what list prints.
type listed struct {
	Letters []letterJSON   `json:"letters"`
	Matched int            `json:"matched"`
	States  map[string]int `json:"states"` // of what matches
	Reasons map[string]int `json:"reasons"`
}

func newDeadList() *cobra.Command {
	var o office
	var s selection
	var limit int
	cmd := &cobra.Command{
		Use:   "list [LETTER...]",
		Short: "List dead letters: where each came from, why it is here, and what has become of it",
		Long: `List dead letters, the newest last: where each came from, why it is here, and what has become of it. Those that wait are shown;
--state all shows the others too.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.output.check(); err != nil {
				return err
			}
			if limit < 0 {
				return &usageError{fmt.Errorf("--limit %d: want 0 or more", limit)}
			}
			f, err := s.filter(&o, args)
			if err != nil {
				return err
			}
			at, err := o.open(cmd)
			if err != nil {
				return err
			}
			defer at.close()
			all := listed{Letters: []letterJSON{}, States: map[string]int{}, Reasons: map[string]int{}}
			err = at.box.Each(cmd.Context(), f, func(l dead.Letter) error {
				all.Matched++
				all.States[string(l.State)]++
				all.Reasons[orUnknown(string(l.Reason))]++
				all.Letters = append(all.Letters, letterOf(&l))
				if limit > 0 && len(all.Letters) >= 2*limit {
					all.Letters = newest(all.Letters, limit)
				}
				return nil
			})
			if err != nil {
				return err
			}
			all.Letters = newest(all.Letters, limit)
			if o.output == "json" {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return all.print(cmd.OutOrStdout())
		},
	}
	o.add(cmd)
	s.add(cmd, string(dead.Waiting))
	cmd.Flags().IntVar(&limit, "limit", 100, "show so many of the newest `letters`; 0 = all")
	return cmd
}

func orUnknown(reason string) string {
	if reason == "" {
		return "unknown"
	}
	return reason
}

// newest are the last n by the time of their burial, 0 = all, in that order.
func newest(all []letterJSON, n int) []letterJSON {
	slices.SortStableFunc(all, func(a, b letterJSON) int { return a.BuriedAt.Compare(b.BuriedAt) })
	if n > 0 && len(all) > n {
		return slices.Clone(all[len(all)-n:])
	}
	return all
}

func (l *listed) print(w io.Writer) error {
	if len(l.Letters) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "LETTER\tSTATE\tREASON\tWRITTEN\tBY\tKEY\tBYTES\tERROR")
		for _, x := range l.Letters {
			key := "base64 " + x.KeyBase64
			if x.Key != nil {
				key = printable(*x.Key, 60)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", x.Letter, x.State, printable(orUnknown(x.Reason), 40), x.BuriedAt.Format(time.RFC3339),
				printable(x.By, 60), key, x.Bytes, printable(x.Error, 80))
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("write the list: %w", err)
		}
	}
	fmt.Fprintf(w, "%d letters", l.Matched)
	for _, state := range dead.States {
		if n := l.States[string(state)]; n > 0 {
			fmt.Fprintf(w, ", %d %s", n, state)
		}
	}
	if len(l.Letters) < l.Matched {
		fmt.Fprintf(w, "; the newest %d are shown, --limit shows more", len(l.Letters))
	}
	fmt.Fprintln(w)
	return nil
}

// printable is a text that does nothing to a terminal, cut after so many characters.
func printable(s string, most int) string {
	q := strconv.QuoteToGraphic(s)
	if q == `"`+s+`"` {
		q = s
	}
	if r := []rune(q); len(r) > most {
		return string(r[:most]) + "…"
	}
	return q
}

// headersJSON are the headers of a record.
type headerJSON struct {
	Key    string  `json:"key"`
	Value  *string `json:"value,omitempty"`
	Base64 string  `json:"value_base64,omitempty"`
}

func headersOf(all []event.Header) []headerJSON {
	out := make([]headerJSON, len(all))
	for i, h := range all {
		out[i].Key = h.Key
		out[i].Value, out[i].Base64 = textOrBase64(h.Value)
	}
	return out
}
