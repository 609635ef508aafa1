package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
)

// shown is a whole letter as -o json shows it.
type shown struct {
	letterJSON
	RecordTime time.Time    `json:"record_time"`
	Unreadable string       `json:"unreadable,omitempty"` // why the record is no event
	Headers    []headerJSON `json:"headers"`
	Payload    *string      `json:"payload,omitempty"`
	Base64     string       `json:"payload_base64,omitempty"`
	Cut        bool         `json:"payload_cut,omitempty"`
}

func newDeadShow() *cobra.Command {
	var o office
	var raw bool
	limit := sizeFlag(app.KiB)
	cmd := &cobra.Command{
		Use:   "show LETTER",
		Short: "Show one dead letter whole, or write its payload",
		Long: `Show one dead letter whole: where it came from, why it is here, its headers, and the beginning of its payload. --payload writes the
payload alone, as it is, for a file or another program.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.output.check(); err != nil {
				return err
			}
			place, err := dead.ParsePlace(args[0])
			if err != nil {
				return &usageError{err}
			}
			at, err := o.open(cmd)
			if err != nil {
				return err
			}
			defer at.close()
			l, found, err := at.box.Letter(cmd.Context(), place)
			switch {
			case err != nil:
				return err
			case !found:
				return fmt.Errorf("letter %s: there is none; retention may have removed it", place)
			case raw:
				if _, err := cmd.OutOrStdout().Write(l.Record.Value); err != nil {
					return fmt.Errorf("write the payload: %w", err)
				}
				return nil
			case o.output == "json":
				return printJSON(cmd.OutOrStdout(), wholeLetter(&l, int(limit)))
			}
			printLetter(cmd.OutOrStdout(), &l, int(limit))
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&raw, "payload", false, "write the payload alone, all of it")
	cmd.Flags().Var(&limit, "limit", "show so much of the payload: a `size` such as 4KiB")
	return cmd
}

// sizeFlag is a flag that is a size, as in the configuration.
type sizeFlag app.Size

func (s *sizeFlag) String() string { return app.Size(*s).String() }
func (s *sizeFlag) Type() string   { return "size" }

// Set reads a size.
func (s *sizeFlag) Set(text string) error {
	v, err := app.ParseSize(text)
	*s = sizeFlag(v)
	return err
}

func wholeLetter(l *dead.Letter, limit int) shown {
	s := shown{letterJSON: letterOf(l), RecordTime: l.Record.Time, Headers: headersOf(l.Record.Headers)}
	if l.Err != nil {
		s.Unreadable = l.Err.Error()
	}
	payload := l.Record.Value
	if len(payload) > limit {
		payload, s.Cut = payload[:limit], true
	}
	if utf8.Valid(l.Record.Value) {
		text := string(trimRune(payload))
		s.Payload = &text
	} else {
		s.Base64 = base64.StdEncoding.EncodeToString(payload)
	}
	return s
}

// trimRune takes the pieces of a cut character off the end.
func trimRune(b []byte) []byte {
	for len(b) > 0 && !utf8.Valid(b[max(0, len(b)-utf8.UTFMax):]) {
		if r, _ := utf8.DecodeLastRune(b); r != utf8.RuneError {
			break
		}
		b = b[:len(b)-1]
	}
	return b
}

func printLetter(w io.Writer, l *dead.Letter, limit int) {
	say := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s%s\n", name, fmt.Sprintf(format, args...))
	}
	say("letter", "%s", l.At)
	if l.State == dead.Waiting {
		say("state", "%s", l.State)
	} else {
		say("state", "%s at %s", l.State, l.MarkedAt.Format(time.RFC3339Nano))
	}
	say("reason", "%s", printable(orUnknown(string(l.Reason)), 100))
	say("error", "%s", printable(l.Cause, 4000))
	say("written", "%s by %s", l.BuriedAt.Format(time.RFC3339Nano), printable(l.By, 200))
	if l.Offset == pipeline.NoOffset {
		say("for", "%s, where it never was", printable(l.Topic, 300))
	} else {
		say("from", "%s, partition %d, offset %d", printable(l.Topic, 300), l.Part, l.Offset)
	}
	say("time", "%s", l.Record.Time.Format(time.RFC3339Nano))
	say("key", "%s", printable(string(l.Record.Key), 2000))
	if l.Err != nil {
		say("unreadable", "%s", printable(l.Err.Error(), 2000))
	}
	for _, h := range l.Record.Headers {
		say("header", "%s: %s", printable(h.Key, 200), printable(string(h.Value), 2000))
	}
	payload := l.Record.Value
	switch {
	case len(payload) == 0:
		say("payload", "empty")
		return
	case len(payload) > limit:
		payload = payload[:limit]
		say("payload", "%d bytes, the first %d are shown, --payload writes all", len(l.Record.Value), limit)
	default:
		say("payload", "%d bytes", len(payload))
	}
	if utf8.Valid(l.Record.Value) {
		fmt.Fprintln(w, printable(string(trimRune(payload)), 2*limit))
		return
	}
	fmt.Fprint(w, hex.Dump(payload))
}
