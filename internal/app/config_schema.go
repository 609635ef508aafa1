package app

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// field is what a struct's tags say of one key.
type field struct {
	Key        string
	Index      int
	Type       reflect.Type
	Doc        string
	Min, Max   string
	One, Later []string
	Need       bool
	Omit       bool // left out of the printed configuration while it is zero
}

// fieldsOf lists the keys of a struct, in order.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, rest, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key == "-" {
			continue
		}
		one, hasOne := f.Tag.Lookup("one")
		d := field{
			Key: key, Index: i, Type: f.Type, Doc: f.Tag.Get("doc"), Min: f.Tag.Get("min"), Max: f.Tag.Get("max"),
			Need: f.Tag.Get("need") == "true", Omit: rest == "omitempty",
		}
		if hasOne {
			d.One = strings.Split(one, "|")
		}
		if later := f.Tag.Get("later"); later != "" {
			d.Later = strings.Split(later, "|")
		}
		out = append(out, d)
	}
	return out
}

// checkTags visits all that the configuration holds and checks what the tags ask for.
func checkTags(v reflect.Value, path string, faults *Faults) {
	switch v.Kind() { //nolint:exhaustive // the others have no tags inside
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			at := join(path, f.Key)
			f.check(v.Field(f.Index), at, faults)
			checkTags(v.Field(f.Index), at, faults)
		}
		if part, ok := partOf(v); ok {
			checkTags(part, path, faults)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			checkTags(v.MapIndex(k), join(path, k.String()), faults)
		}
	case reflect.Slice:
		for i := range v.Len() {
			checkTags(v.Index(i), fmt.Sprintf("%s[%d]", path, i), faults)
		}
	}
}

// partOf is the part that a variant's type has chosen, false when v is no variant or nothing is chosen.
func partOf(v reflect.Value) (reflect.Value, bool) {
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	if x, ok := reflect.TypeAssert[variant](p); ok && x.chosen() != nil {
		return reflect.ValueOf(x.chosen()).Elem(), true
	}
	return reflect.Value{}, false
}

func (f field) check(v reflect.Value, at string, faults *Faults) {
	switch {
	case f.Need && v.IsZero(), f.Need && v.Kind() == reflect.Slice && v.Len() == 0:
		if len(f.One) > 0 {
			faults.add(at, "is missing: one of %s", strings.Join(f.One, ", "))
		} else {
			faults.add(at, "is missing")
		}
		return
	case len(f.One) > 0:
		f.checkOne(v.String(), at, faults)
	}
	if f.Min == "" && f.Max == "" {
		return
	}
	n, lo, hi := v.Int(), f.bound(f.Min), f.bound(f.Max)
	switch {
	case f.Min != "" && n < lo:
		faults.add(at, "%s is too small, the least is %s", show(v), f.Min)
	case f.Max != "" && n > hi:
		faults.add(at, "%s is too large, the most is %s", show(v), f.Max)
	}
}

func (f field) checkOne(s, at string, faults *Faults) {
	var choice []string
	for _, one := range f.One {
		if s == one {
			return
		}
		if one != "" {
			choice = append(choice, one)
		}
	}
	if slices.Contains(f.Later, s) {
		faults.add(at, "%s is not in this version: %s", s, strings.Join(choice, ", "))
		return
	}
	if best := nearest(s, choice); best != "" {
		faults.add(at, "%q is unknown: did you mean %s?", s, best)
		return
	}
	faults.add(at, "%q is unknown: one of %s", s, strings.Join(choice, ", "))
}

// bound reads a limit in the unit of the field. The tags are ours: a test reads them all.
func (f field) bound(text string) int64 {
	if text == "" {
		return 0
	}
	var n int64
	var err error
	switch f.Type {
	case durationType:
		var d time.Duration
		d, err = ParseDuration(text)
		n = int64(d)
	case sizeType:
		var s Size
		s, err = ParseSize(text)
		n = int64(s)
	default:
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if err != nil {
		panic(fmt.Sprintf("config: tag of %s: %v", f.Key, err))
	}
	return n
}

// show writes a value as the file would.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return formatDuration(x)
	default:
		return fmt.Sprint(x)
	}
}

// typeName is what the reference calls the type.
func (f field) typeName() string {
	switch {
	case f.Type == durationType:
		return "duration"
	case f.Type == sizeType:
		return "size"
	case f.Type == reflect.TypeFor[Secret]():
		return "secret"
	case f.Type == addressType, f.Type == listType:
		return "list"
	case f.Type.Kind() == reflect.Pointer:
		return f.Type.Elem().Kind().String()
	}
	return f.Type.Kind().String()
}
