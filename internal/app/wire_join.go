package app

import (
	"context"

	"github.com/restante/restante/pipeline"
)

// joining is a group that tells the health when it has joined for the first time. Later rebalances are part of being ready.
type joining struct {
	pipeline.Group
	health    *Health
	condition string
}

// joining makes the group a condition of being ready.
func (w *Wire) joining(name string, g pipeline.Group) pipeline.Group {
	j := joining{g, w.Process.Health, conditionGroup(name)}
	j.health.Set(j.condition, false, "has not joined yet")
	return j
}

func (j joining) Next(ctx context.Context) (pipeline.Generation, error) {
	gen, err := j.Group.Next(ctx)
	if err == nil {
		j.health.Set(j.condition, true, "")
	}
	return gen, err
}
