// Package fault classifies errors. Drivers' errors are classified once, at the border where they arise; the loops ask.
//
// There are three classes. An unmarked error is transient: it is retried for ever, with a capped and jittered back-off.
// [Poison] marks what can never be stored: the record goes whole to the dead-letter topic and the work goes on.
// [Fatal] marks what the process cannot work with (a missing table, a refused login): it ends with a non-zero status.
package fault

import "errors"

type poison struct{ err error }

func (p *poison) Error() string { return p.err.Error() }
func (p *poison) Unwrap() error { return p.err }

type fatal struct{ err error }

func (f *fatal) Error() string { return f.err.Error() }
func (f *fatal) Unwrap() error { return f.err }

// Poison marks err as never storable. It returns nil for a nil err.
func Poison(err error) error {
	if err == nil {
		return nil
	}
	return &poison{err}
}

// Fatal marks err as one that the process cannot work with; its text should end with what to do.
// It returns nil for a nil err.
func Fatal(err error) error {
	if err == nil {
		return nil
	}
	return &fatal{err}
}

// IsPoison reports whether err, or an error that it wraps, was marked by [Poison]. A fatal error is never poison.
func IsPoison(err error) bool {
	var p *poison
	return errors.As(err, &p) && !IsFatal(err)
}

// IsFatal reports whether err, or an error that it wraps, was marked by [Fatal].
func IsFatal(err error) bool {
	var f *fatal
	return errors.As(err, &f)
}
