package pipeline

// later are actions that the planner knows and this version cannot carry out, with what to do instead: none at present.
var later map[Action]string

// Unsupported says why this version cannot carry out the rule, which the planner knows; "" = it can.
func (r Rule) Unsupported() string { return later[r.Action] }
