package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/restante/restante/event"
	"github.com/restante/restante/internal/app"
	"github.com/restante/restante/pipeline"
	"github.com/restante/restante/pipeline/dead"
)

func newDead(signals <-chan os.Signal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "List, show, put back and drop dead letters",
		Long: `List, show, put back and drop dead letters: records that could not be processed, kept whole in the dead-letter topic with the
reason. docs/deadletters.md says of each reason what it means and what to do.

A letter is named by its partition and offset in that topic, as list shows it. What becomes of a letter is noted behind it in the
topic; nothing is removed but by the topic's retention.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDeadList(), newDeadShow(), newDeadRedrive(signals), newDeadDrop(signals))
	return cmd
}

// office is what all verbs of dead have: where the letters are.
type office struct {
	place
	output output
}

func (o *office) add(cmd *cobra.Command) {
	o.place.add(cmd)
	o.output.add(cmd)
}

// noAnswer is how long Kafka may give nothing before a command fails.
const noAnswer = 30 * time.Second

// opened is the dead-letter topic, read once.
type opened struct {
	config app.Config
	office dead.Office
	box    *dead.Box
	// producer appends to the topics; whoever calls it closes what it returns.
	producer func() pipeline.Producer
	close    func()
}

func (o *office) open(cmd *cobra.Command) (*opened, error) {
	c, err := o.load()
	if err != nil {
		return nil, err
	}
	k, err := openKafka(cmd, c)
	if err != nil {
		return nil, err
	}
	d := dead.Office{Log: k.Log("restante.dead"), Topics: c.Kafka.TopicNames(), Parts: c.Kafka.Dead.Partitions, Patience: noAnswer}
	box, err := d.Open(cmd.Context())
	if err != nil {
		k.Close()
		return nil, err
	}
	return &opened{c, d, box, k.Producer, k.Close}, nil
}

// selection are the flags by which letters are selected.
type selection struct {
	state, reason, sink, topic, client, since, until string
	partition                                        int
}

func (s *selection) add(cmd *cobra.Command, state string) {
	f := cmd.Flags()
	if state != "" {
		f.StringVar(&s.state, "state", state, "only letters in this `state`: "+joined(dead.States)+" or all")
	}
	f.StringVar(&s.reason, "reason", "", "only letters of this `reason`: "+joined(pipeline.Reasons))
	f.StringVar(&s.sink, "sink", "", "only letters that the writers of this `sink` could not store")
	f.StringVar(&s.topic, "topic", "", "only letters about MQTT topics that match this `filter`")
	f.StringVar(&s.client, "client", "", "only letters about this `client` id")
	f.StringVar(&s.since, "since", "", "only letters written since this `time`, or so long ago: 2026-01-31T12:00:00Z, 2h, 3d")
	f.StringVar(&s.until, "until", "", "only letters written before this `time`, or so long ago")
	f.IntVar(&s.partition, "partition", -1, "only letters of records in this `partition` of their topic")
}

func joined[T ~string](all []T) string {
	texts := make([]string, len(all))
	for i, t := range all {
		texts[i] = string(t)
	}
	return strings.Join(texts, ", ")
}

// filter is what the flags and the names of letters select.
func (s *selection) filter(o *office, args []string) (f dead.Filter, err error) {
	var errs []error
	bad := func(flag string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
		}
	}
	for _, a := range args {
		p, err := dead.ParsePlace(a)
		errs = append(errs, err)
		f.Places = append(f.Places, p)
	}
	if s.state != "" && s.state != "all" {
		f.State = dead.State(s.state)
		if !slices.Contains(dead.States, f.State) {
			bad("state", fmt.Errorf("%q: want one of %s or all", s.state, joined(dead.States)))
		}
	}
	if s.reason != "" {
		f.Reason, err = pipeline.ParseReason(s.reason)
		bad("reason", err)
	}
	if s.topic != "" {
		f.Topic, err = event.ParseFilter(s.topic)
		bad("topic", err)
	}
	if s.client != "" {
		f.Client, err = event.ParseClientID(s.client)
		bad("client", err)
	}
	now := time.Now()
	f.Since, err = parseWhen("since", s.since, now)
	errs = append(errs, err)
	f.Until, err = parseWhen("until", s.until, now)
	errs = append(errs, err)
	if s.partition >= 0 {
		f.Partition = &s.partition
	}
	if err := errors.Join(errs...); err != nil {
		return f, &usageError{err}
	}
	if s.sink != "" {
		c, err := o.load()
		if err != nil {
			return f, err
		}
		if _, ok := c.Sinks[s.sink]; !ok {
			return f, &usageError{fmt.Errorf("--sink %q: there is no such sink", s.sink)}
		}
		f.By = c.Kafka.WriterGroup(s.sink)
	}
	return f, nil
}
