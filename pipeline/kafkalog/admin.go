package kafkalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/restante/restante/fault"
	"github.com/restante/restante/pipeline"
)

// TopicSpec is how a topic has to be.
type TopicSpec struct {
	Name        string
	Partitions  int
	Replication int
	Config      map[string]string // by Kafka's names, such as retention.ms
}

func (s TopicSpec) String() string {
	parts := []string{fmt.Sprintf("topic %s: %d partitions", s.Name, s.Partitions), fmt.Sprintf("replication %d", s.Replication)}
	for _, k := range slices.Sorted(maps.Keys(s.Config)) {
		parts = append(parts, k+"="+s.Config[k])
	}
	return strings.Join(parts, ", ")
}

// found is a topic as it is.
type found struct {
	partitions  int
	replication int // of its least replicated partition
	config      map[string]string
}

// adminTimeout bounds one call of Migrate, Verify, Ping or EvictMembers when ctx does not.
const adminTimeout = 30 * time.Second

// Ping returns nil when a broker answers.
func (c *Client) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	fresh, done := c.fresh()
	defer done()
	return c.unreachable(c.again(ctx, func() error {
		_, err := fresh.Metadata(ctx, &kafka.MetadataRequest{})
		return err
	}))
}

func (c *Client) unreachable(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("reach kafka at %s: %w", strings.Join(c.cfg.Brokers, ","), err)
	if a := fault.TLSAdvice(err, "kafka.tls"); a != "" {
		return fmt.Errorf("%w: %s", err, a)
	}
	if errors.Is(err, kafka.SASLAuthenticationFailed) || errors.Is(err, kafka.UnsupportedSASLMechanism) {
		return fmt.Errorf("%w: put kafka.sasl right", err)
	}
	return err
}

// Migrate creates the topics that are missing and compares the others with their specs. It never changes a topic that exists:
// a difference is an error that says what to do, all of them together; more partitions than configured is only a warning among
// the lines returned. The lines say what was done, or would be in a dry run. Called again, it does nothing.
func (c *Client) Migrate(ctx context.Context, specs []TopicSpec, dryRun bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	fresh, done := c.fresh()
	defer done()
	topics, err := c.describe(ctx, fresh, specs)
	if err != nil {
		return nil, err
	}
	var lines []string
	var errs []error
	for _, s := range specs {
		is, ok := topics[s.Name]
		if ok {
			warnings, err := s.compare(is)
			lines, errs = append(lines, warnings...), append(errs, err)
			continue
		}
		if dryRun {
			lines = append(lines, "would create "+s.String())
			continue
		}
		made, err := c.create(ctx, fresh, s)
		errs = append(errs, err)
		if made {
			lines = append(lines, "created "+s.String())
		}
	}
	return lines, errors.Join(errs...)
}

// create returns false without an error when somebody else was faster.
func (c *Client) create(ctx context.Context, fresh *kafka.Client, s TopicSpec) (bool, error) {
	topic := kafka.TopicConfig{Topic: s.Name, NumPartitions: s.Partitions, ReplicationFactor: s.Replication}
	for _, k := range slices.Sorted(maps.Keys(s.Config)) {
		topic.ConfigEntries = append(topic.ConfigEntries, kafka.ConfigEntry{ConfigName: k, ConfigValue: s.Config[k]})
	}
	made := true
	err := c.again(ctx, func() error {
		res, err := fresh.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
		if err == nil {
			err = res.Errors[s.Name]
		}
		var k kafka.Error
		switch {
		case errors.Is(err, kafka.TopicAlreadyExists):
			made = false
			return nil
		case errors.As(err, &k) && !k.Temporary(): // an invalid name, number or setting stays invalid
			return fault.Fatal(err)
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("create topic %s: %w", s.Name, err)
	}
	return made, nil
}

// Verify returns nil when all topics are as configured or have more partitions (which is logged).
func (c *Client) Verify(ctx context.Context, specs []TopicSpec) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	fresh, done := c.fresh()
	defer done()
	topics, err := c.describe(ctx, fresh, specs)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range specs {
		is, ok := topics[s.Name]
		if !ok {
			errs = append(errs, missing(s.Name))
			continue
		}
		warnings, err := s.compare(is)
		errs = append(errs, err)
		for _, w := range warnings {
			c.log.WarnContext(ctx, "kafka topic differs from the configuration", "topic", s.Name, "warning", w)
		}
	}
	return errors.Join(errs...)
}

func missing(topic string) error {
	return fault.Fatal(fmt.Errorf(`topic %s is missing: run "restante migrate"`, topic))
}

// compare names every difference.
func (s TopicSpec) compare(is found) (warnings []string, err error) {
	var errs []error
	differs := func(format string, args ...any) {
		errs = append(errs, fault.Fatal(fmt.Errorf("topic "+s.Name+": "+format, args...)))
	}
	switch {
	case is.partitions > s.Partitions:
		warnings = append(warnings, fmt.Sprintf("warning: topic %s has %d partitions and %d are configured: the others stay empty",
			s.Name, is.partitions, s.Partitions))
	case is.partitions < s.Partitions:
		differs("it has %d partitions and %d are configured: add partitions with kafka-topics --alter, or configure %d; "+
			"drain the lag first, for keys change their partition", is.partitions, s.Partitions, is.partitions)
	}
	if is.replication < s.Replication {
		differs("its replication is %d and %d is configured: reassign its replicas, or configure %d",
			is.replication, s.Replication, is.replication)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Config)) {
		if got, ok := is.config[k]; !ok {
			differs("%s is not known to the brokers and %s is configured", k, s.Config[k])
		} else if got != s.Config[k] {
			differs("%s is %s and %s is configured: change the topic with kafka-configs --alter, or the configuration",
				k, got, s.Config[k])
		}
	}
	return warnings, errors.Join(errs...)
}

// describe leaves out the topics that do not exist.
func (c *Client) describe(ctx context.Context, fresh *kafka.Client, specs []TopicSpec) (map[string]found, error) {
	names := make([]string, len(specs))
	wanted := make(map[string][]string, len(specs))
	for i, s := range specs {
		names[i], wanted[s.Name] = s.Name, slices.Sorted(maps.Keys(s.Config))
	}
	topics := map[string]found{}
	err := c.again(ctx, func() error {
		clear(topics)
		m, err := fresh.Metadata(ctx, &kafka.MetadataRequest{Topics: names})
		if err != nil {
			return c.unreachable(err)
		}
		req := &kafka.DescribeConfigsRequest{}
		for _, t := range m.Topics {
			if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
				continue
			}
			if t.Error != nil {
				return fmt.Errorf("look up topic %s: %w", t.Name, t.Error)
			}
			f := found{partitions: len(t.Partitions), config: map[string]string{}}
			for i, p := range t.Partitions {
				if i == 0 || len(p.Replicas) < f.replication {
					f.replication = len(p.Replicas)
				}
			}
			topics[t.Name] = f
			if len(wanted[t.Name]) > 0 {
				req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
					ResourceType: kafka.ResourceTypeTopic, ResourceName: t.Name, ConfigNames: wanted[t.Name],
				})
			}
		}
		if len(req.Resources) == 0 {
			return nil
		}
		res, err := fresh.DescribeConfigs(ctx, req)
		if err != nil {
			return fmt.Errorf("describe topics: %w", err)
		}
		for _, r := range res.Resources {
			if r.Error != nil {
				return fmt.Errorf("describe topic %s: %w", r.ResourceName, r.Error)
			}
			for _, e := range r.ConfigEntries {
				topics[r.ResourceName].config[e.ConfigName] = e.ConfigValue
			}
		}
		return nil
	})
	return topics, err
}

// awaitTopics returns nil when all topics exist. It waits for brokers that cannot be reached; a topic that reachable brokers
// do not know for a second is missing, which is fatal.
func (c *Client) awaitTopics(ctx context.Context, t *trouble, topics []string) error {
	const enough = 5
	fresh, done := c.fresh()
	defer func() { done() }()
	for try, unknown := 0, 0; ; try++ {
		m, err := fresh.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		wait := pause(try)
		if err = mark(err); fault.IsFatal(err) {
			return c.unreachable(err)
		}
		if err == nil {
			t.over(ctx, "look up topics")
			gone := ""
			for _, topic := range m.Topics {
				if errors.Is(topic.Error, kafka.UnknownTopicOrPartition) {
					gone = topic.Name
				} else if topic.Error != nil {
					err = fmt.Errorf("look up topic %s: %w", topic.Name, topic.Error)
				}
			}
			switch {
			case gone != "":
				if unknown++; unknown >= enough {
					return missing(gone)
				}
				// The answers are cached: asking anew means a new client.
				done()
				fresh, done = c.fresh()
				wait = 200 * time.Millisecond
			case err == nil:
				return nil
			}
		}
		if err != nil {
			t.met(ctx, "look up topics", err)
		}
		if err := pipeline.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// EvictMembers removes all members from a group. It is for a caller that knows that none of them lives, such as one that holds
// the lock of the only process's data directory: without it the next join waits until the sessions of the dead have ended.
// It returns how many it removed.
func (c *Client) EvictMembers(ctx context.Context, group string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	evicted := 0
	err := c.again(ctx, func() error {
		res, err := c.asking.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
		if err != nil {
			return err
		}
		for _, g := range res.Groups {
			if errors.Is(g.Error, kafka.GroupIdNotFound) { // never used
				continue
			}
			if g.Error != nil {
				return g.Error
			}
			for _, m := range g.Members {
				if err := c.evict(ctx, group, m.MemberID); err != nil {
					return err
				}
				evicted++
			}
		}
		return nil
	})
	if err != nil {
		return evicted, fmt.Errorf("remove the members of group %s: %w", group, err)
	}
	return evicted, nil
}

func (c *Client) evict(ctx context.Context, group, member string) error {
	res, err := c.asking.LeaveGroup(ctx, &kafka.LeaveGroupRequest{
		GroupID: group, Members: []kafka.LeaveGroupRequestMember{{ID: member}},
	})
	if err != nil {
		return err
	}
	errs := []error{res.Error}
	for _, m := range res.Members {
		errs = append(errs, m.Error)
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, kafka.UnknownMemberId) { // it has gone by itself
			return err
		}
	}
	return nil
}
