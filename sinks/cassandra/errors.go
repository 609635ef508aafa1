package cassandra

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"

	"github.com/gocql/gocql"

	"github.com/restante/restante/fault"
)

// class says what is to be done about an error.
type class int

const (
	transient class = iota // try again; a request that timed out may have been done, which nobody knows
	split                  // too large: send less at a time; a single row can never be stored
	poison                 // the row can never be stored
	fatal                  // the process cannot work with it
	buried                 // more tombstones in the range than a read may meet: read less at a time
)

const (
	migrateAdvice = `run "restante migrate"`
	grantAdvice   = "give the user the right to SELECT and MODIFY in the keyspace"
	loginAdvice   = "put user and password right in the config"
	schemaAdvice  = `run "restante check" to see how the tables differ`
)

// codes classifies the servers' error codes. What is not in it is transient: a retry is never wrong, only late.
var codes = map[int]struct {
	class
	advice string
}{
	gocql.ErrCodeServer:          {transient, ""},
	gocql.ErrCodeProtocol:        {transient, ""},
	gocql.ErrCodeUnavailable:     {transient, "too few replicas are up"},
	gocql.ErrCodeOverloaded:      {transient, ""},
	gocql.ErrCodeBootstrapping:   {transient, ""},
	gocql.ErrCodeTruncate:        {transient, ""},
	gocql.ErrCodeWriteTimeout:    {transient, ""},
	gocql.ErrCodeReadTimeout:     {transient, ""},
	gocql.ErrCodeReadFailure:     {transient, ""},
	gocql.ErrCodeWriteFailure:    {transient, ""},
	gocql.ErrCodeCDCWriteFailure: {transient, "the space for changes to capture is full"},
	gocql.ErrCodeUnprepared:      {transient, ""},
	gocql.ErrCodeCredentials:     {fatal, loginAdvice},
	gocql.ErrCodeSyntax:          {fatal, "use Cassandra 3.11 or later"},
	gocql.ErrCodeUnauthorized:    {fatal, grantAdvice},
	gocql.ErrCodeConfig:          {fatal, "put the keyspace's options right"},
	gocql.ErrCodeInvalid:         {poison, ""},
}

// texts refines the codes: many faults share one. The first that matches decides.
var texts = []struct {
	code int // 0 = any
	re   *regexp.Regexp
	class
	advice string
}{
	{0, regexp.MustCompile(`READ_TOO_MANY_TOMBSTONES`), buried, ""},
	{0, regexp.MustCompile(`(?i)batch too large|mutation.* too large|request is too big|frame (length|size).*exceed`), split, ""},
	{gocql.ErrCodeCredentials, regexp.MustCompile(`Unable to perform authentication`), transient, "the servers cannot read their users"},
	{gocql.ErrCodeUnauthorized, regexp.MustCompile(`Unable to perform authorization`), transient, "the servers cannot read their permissions"},
	{gocql.ErrCodeInvalid, regexp.MustCompile(`(?i)unconfigured table|(table|columnfamily) \S+ does not exist`), fatal, migrateAdvice},
	{gocql.ErrCodeInvalid, regexp.MustCompile(`(?i)keyspace '?\S+ (does not|doesn't) exist`), fatal, migrateAdvice + ", or put keyspace right in the config"},
	{gocql.ErrCodeInvalid, regexp.MustCompile(`(?i)undefined (column )?name|unknown identifier|expected \d+( or \d+)* bytes?|type error`), fatal, schemaAdvice},
	{gocql.ErrCodeInvalid, regexp.MustCompile(`(?i)guardrail.*disk`), transient, "the servers' disks are full"},
	{gocql.ErrCodeInvalid, regexp.MustCompile(`(?i)guardrail.*consistency`), fatal, "put consistency right in the config"},
}

// classify returns the class of an error and what to do about it.
func classify(err error) (class, string) {
	if re, ok := errors.AsType[gocql.RequestError](err); ok {
		for _, t := range texts {
			if (t.code == 0 || t.code == re.Code()) && t.re.MatchString(re.Message()) {
				return t.class, t.advice
			}
		}
		c := codes[re.Code()]
		return c.class, c.advice
	}
	var marshal gocql.MarshalError
	var unmarshal gocql.UnmarshalError
	var dns *net.DNSError
	switch {
	case errors.Is(err, gocql.ErrFrameTooBig):
		return split, ""
	case errors.As(err, &marshal):
		return poison, ""
	case errors.As(err, &unmarshal):
		return fatal, schemaAdvice
	case errors.Is(err, gocql.ErrKeyspaceDoesNotExist), errors.Is(err, gocql.ErrNoKeyspace):
		return fatal, migrateAdvice
	case errors.As(err, &dns):
		return transient, "put hosts right in the config, or the name into DNS"
	case strings.Contains(err.Error(), "authentication required"):
		return fatal, loginAdvice
	case strings.Contains(err.Error(), "unexpected authenticator"):
		return fatal, "this login is of a kind that Restante cannot speak"
	case strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "x509: "):
		return transient, cmp.Or(fault.TLSAdvice(err, "tls"), "look at the certificates and the name of the server, or whether it speaks TLS")
	}
	return transient, ""
}

// timedOut reports whether nobody knows if the request was done.
func timedOut(err error) bool {
	var w *gocql.RequestErrWriteTimeout
	return errors.As(err, &w) || errors.Is(err, gocql.ErrTimeoutNoResponse) || errors.Is(err, context.DeadlineExceeded)
}

// explain says what could not be done, marks the class and adds what to do. nil stays nil. What is too large for one request is
// poison: where it could be cut, it was.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	c, advice := classify(err)
	if advice == "" {
		err = fmt.Errorf("%s: %w", what, err)
	} else {
		err = fmt.Errorf("%s: %w: %s", what, err, advice)
	}
	switch c {
	case poison, split:
		return fault.Poison(err)
	case fatal:
		return fault.Fatal(err)
	case transient, buried:
	}
	return err
}

func wrongDC(dc string, all []string) error {
	return fault.Fatal(fmt.Errorf("local_dc %q is no data center of the cluster, which has %s: put local_dc right in the config", dc, strings.Join(unique(all), ", ")))
}
