package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/audit"
	"github.com/restante/restante/pipeline/kafkalog"
)

// differenceJSON is a difference as -o json shows it.
type differenceJSON struct {
	Sink      string `json:"sink"`
	Kind      string `json:"kind"`
	Topic     string `json:"topic,omitempty"`
	Message   string `json:"message,omitempty"`
	Kafka     string `json:"kafka_topic"`
	Partition int    `json:"partition"`
	Offset    *int64 `json:"offset,omitempty"`
	Says      string `json:"says"`
}

// booksJSON are the books of a sink as -o json shows them.
type booksJSON struct {
	Sink string `json:"sink"`
	audit.Books
	Differences int    `json:"differences"`
	Error       string `json:"error,omitempty"` // why the sink is not compared whole
}

// audited is what audit prints.
type audited struct {
	Sinks       []booksJSON      `json:"sinks"`
	Differences []differenceJSON `json:"differences"`
	Found       int              `json:"found"` // also those over the limit
	Complete    bool             `json:"complete"`
}

// auditing are the flags of audit.
type auditing struct {
	place
	output              output
	topic, since, until string
	sinks               []string
	limit               int
}

func newAudit(signals <-chan os.Signal) *cobra.Command {
	var a auditing
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare Kafka, the stores and the writers' positions, and name each difference",
		Long: `Compare what stands in Kafka with what stands in each store, by the positions that the store's writers have committed, and name each
difference on a line: messages that are missing, that were acknowledged and are still there, that never were published, or that
are not what was published; records that are neither stored nor in the dead letters; positions outside the log. It changes nothing,
and everything may run meanwhile: what is on its way is no difference. docs/audit.md says what it cannot decide.

Without --topic, --since or --until it reads the whole messages topic. It keeps the ids of one partition at a time in memory.

Exit codes: 0 no difference; 1 differences; 2 wrong flags or configuration; 3 the comparison could not be finished.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.output.check(); err != nil {
				return err
			}
			return a.run(cmd, signals)
		},
	}
	a.add(cmd)
	f := cmd.Flags()
	f.StringVar(&a.topic, "topic", "#", "compare MQTT topics that match this `filter`")
	f.StringVar(&a.since, "since", "", "compare messages since this `time`, or so long ago: 2026-01-31T12:00:00Z, 2h, 3d")
	f.StringVar(&a.until, "until", "", "compare messages before this `time`, or so long ago")
	f.StringSliceVar(&a.sinks, "sink", nil, "compare this `sink` only; several with commas")
	f.IntVar(&a.limit, "limit", 1000, "print so many `differences` of a sink; 0 = all. All are counted")
	a.output.add(cmd)
	return cmd
}

// scope reads the flags.
func (a *auditing) scope(c app.Config) (part audit.Audit, err error) {
	filter, errTopic := event.ParseFilter(a.topic)
	if errTopic == nil && filter.Group() != "" {
		errTopic = errors.New("a shared filter matches nothing here")
	}
	if errTopic != nil {
		errTopic = fmt.Errorf("--topic: %w", errTopic)
	}
	now := time.Now()
	since, errSince := parseWhen("since", a.since, now)
	until, errUntil := parseWhen("until", a.until, now)
	errs := []error{errTopic, errSince, errUntil}
	used := c.UsedSinks()
	if len(a.sinks) == 0 {
		a.sinks = used
	}
	for _, s := range a.sinks {
		switch {
		case !slices.Contains(used, s):
			errs = append(errs, fmt.Errorf("--sink %q: no rule uses such a sink", s))
		case c.Sinks[s].Memory != nil:
			errs = append(errs, fmt.Errorf("--sink %q: it is in the memory of its process, where nobody else can look", s))
		}
	}
	if a.limit < 0 {
		errs = append(errs, fmt.Errorf("--limit %d: want 0 or more", a.limit))
	}
	if err := errors.Join(errs...); err != nil {
		return part, &usageError{err}
	}
	parts := c.Kafka.Messages.Partitions
	return audit.Audit{
		Topics: c.Kafka.TopicNames(), Parts: parts, SessionParts: c.Kafka.Sessions.Partitions, DeadParts: c.Kafka.Dead.Partitions,
		Partition: func(key string) int { return kafkalog.Partition(key, parts) }, Filter: filter, Since: since, Until: until, Now: time.Now,
		Patience: noAnswer,
	}, nil
}

func (a *auditing) run(cmd *cobra.Command, signals <-chan os.Signal) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	part, err := a.scope(c)
	if err != nil {
		return err
	}
	rules, err := pipeline.Compile(c.PipelineRules(), c.OwnPrefixes()...)
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(cmd.Context(), signals)
	defer cancel()
	out, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
	all := audited{Sinks: []booksJSON{}, Differences: []differenceJSON{}, Complete: true}
	k, err := openKafka(cmd, c)
	if err != nil {
		app.PrintFaults(stderr, "restante", err)
		return exitCode(app.ExitUndrained)
	}
	defer k.Close()
	for _, name := range a.sinks {
		one := part
		one.Retained = slices.ContainsFunc(c.PipelineRules(), func(r pipeline.Rule) bool { return r.Sink == name && r.Action == pipeline.OnMessageRetain })
		one.Log, one.Group, one.Plan = k.Log("restante.audit"), c.Kafka.WriterGroup(name), rules.ForSink(name)
		b := booksJSON{Sink: name}
		one.Found = func(d audit.Difference) error {
			b.Differences++
			if a.limit > 0 && b.Differences > a.limit {
				return nil
			}
			j := differenceOf(name, d)
			if a.output == "json" {
				all.Differences = append(all.Differences, j)
			} else {
				j.print(out)
			}
			return nil
		}
		if b.Books, err = auditSink(ctx, c, name, one); err != nil {
			b.Error, all.Complete = err.Error(), false
		}
		all.Found += b.Differences
		all.Sinks = append(all.Sinks, b)
	}
	if a.output == "json" {
		if err := printJSON(out, all); err != nil {
			return err
		}
	} else {
		all.print(out, a.limit)
	}
	switch {
	case !all.Complete:
		return exitCode(app.ExitUndrained)
	case all.Found > 0:
		return exitCode(app.ExitFailed)
	}
	return nil
}

// auditSink opens a sink for reading and audits it.
func auditSink(ctx context.Context, c app.Config, name string, a audit.Audit) (audit.Books, error) {
	store, err := c.OpenSink(ctx, name, app.SinkParts{Look: true})
	if err != nil {
		return audit.Books{}, err
	}
	a.Store = store
	books, err := a.Run(ctx)
	return books, errors.Join(err, store.Close())
}

func differenceOf(sink string, d audit.Difference) differenceJSON {
	j := differenceJSON{Sink: sink, Kind: string(d.Kind), Kafka: d.TP.Topic, Partition: d.TP.Part, Says: d.Says}
	if !d.Message.IsZero() {
		j.Topic, j.Message = d.Topic.String(), d.Message.String()
	}
	if d.Offset >= 0 {
		j.Offset = &d.Offset
	}
	return j
}

func (d differenceJSON) print(w io.Writer) {
	about := fmt.Sprintf("%s/%d", d.Kafka, d.Partition)
	if d.Message != "" {
		about = fmt.Sprintf("%s %s", printable(d.Topic, 500), d.Message)
	}
	if d.Offset != nil && d.Message == "" {
		about += fmt.Sprintf(" offset %d", *d.Offset)
	}
	fmt.Fprintf(w, "%s: %s: %s: %s\n", d.Sink, d.Kind, about, printable(d.Says, 1000))
}

func (a *audited) print(w io.Writer, limit int) {
	for _, b := range a.Sinks {
		fmt.Fprintf(w, "sink %s: %d published = %d stored + %d acknowledged + %d expired + %d in dead letters + %d in flight + %d undecided + %d missing",
			b.Sink, b.Published, b.Stored, b.Acked, b.Expired, b.Refused, b.InFlight, b.Undecided, b.Missing)
		if b.Retained > 0 {
			fmt.Fprintf(w, "; %d retained messages", b.Retained)
		}
		if b.Older > 0 {
			fmt.Fprintf(w, "; %d rows are older than the log", b.Older)
		}
		if b.Strangers > 0 {
			fmt.Fprintf(w, "; %d rows were never published", b.Strangers)
		}
		fmt.Fprintf(w, "; %d records read, %d differences", b.Records, b.Differences)
		if limit > 0 && b.Differences > limit {
			fmt.Fprintf(w, ", the first %d are shown", limit)
		}
		fmt.Fprintln(w)
		if b.Error != "" {
			fmt.Fprintf(w, "sink %s: NOT COMPLETE: %s\n", b.Sink, printable(b.Error, 2000))
		}
	}
}
