package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/restante/restante/fault"
)

// class is one of package fault's three, or done: somebody newer or earlier has won, and there is nothing left to do.
type class int

const (
	transient class = iota
	poison
	fatal
	done
)

const (
	adviceTables = `run "restante migrate", then "restante check"`
	adviceRights = "allow it to this access key or role, or give another one in the config"
	adviceReach  = "start the service, open the way to it, or put region and endpoint right in the config"
	adviceLogin  = "give a valid access key, profile or role in the config or the environment"
)

// faults classifies by the names that the service and its PartiQL statements give to errors. What is not in it is transient: a
// retry is never wrong, only late.
var faults = map[string]struct {
	class
	advice string
}{
	"ProvisionedThroughputExceededException": {transient, "raise the table's capacity, or set it to on demand"},
	"ProvisionedThroughputExceeded":          {transient, "raise the table's capacity, or set it to on demand"},
	"RequestLimitExceeded":                   {transient, "ask for a higher quota of the account"},
	"ThrottlingException":                    {transient, ""},
	"ThrottlingError":                        {transient, ""},
	"InternalServerError":                    {transient, ""},
	"ServiceUnavailable":                     {transient, ""},
	"TransactionConflict":                    {transient, ""},
	"TransactionConflictException":           {transient, ""},
	"ResourceInUseException":                 {transient, "the table is being changed"},
	"RequestExpired":                         {transient, "set this machine's clock"},

	"ConditionalCheckFailedException": {done, ""},
	"ConditionalCheckFailed":          {done, ""},
	"DuplicateItem":                   {done, ""},
	"DuplicateItemException":          {done, ""},

	"ValidationException":                      {poison, ""},
	"ValidationError":                          {poison, ""},
	"ItemCollectionSizeLimitExceededException": {poison, ""},
	"ItemCollectionSizeLimitExceeded":          {poison, ""},

	"ResourceNotFoundException":           {fatal, adviceTables},
	"ResourceNotFound":                    {fatal, adviceTables},
	"AccessDeniedException":               {fatal, adviceRights},
	"AccessDenied":                        {fatal, adviceRights},
	"UnrecognizedClientException":         {fatal, adviceLogin},
	"InvalidSignatureException":           {fatal, adviceLogin},
	"IncompleteSignatureException":        {fatal, adviceLogin},
	"MissingAuthenticationToken":          {fatal, adviceLogin},
	"MissingAuthenticationTokenException": {fatal, adviceLogin},
	"InvalidClientTokenId":                {fatal, adviceLogin},
	"InvalidIdentityToken":                {fatal, adviceLogin},
	"ExpiredToken":                        {fatal, adviceLogin},
	"ExpiredTokenException":               {fatal, adviceLogin},
	"OptInRequired":                       {fatal, "sign the account up for DynamoDB in this region"},
}

// errUnprocessed says that the service took a batch in part, time and again.
var errUnprocessed = errors.New("it was left unprocessed: the table's capacity is short")

// statementError is the error of one statement of a batch.
type statementError struct{ code, message string }

func (e *statementError) Error() string { return e.code + ": " + e.message }

// classify returns the class of an error and what to do about it.
func classify(err error) (class, string) {
	var code, message string
	var api smithy.APIError
	var st *statementError
	switch {
	case errors.As(err, &st):
		code, message = st.code, st.message
	case errors.As(err, &api):
		code, message = api.ErrorCode(), api.ErrorMessage()
	default:
		var op *smithy.OperationError
		if errors.As(err, &op) && strings.Contains(err.Error(), "get identity") {
			return transient, "no credentials were found: " + adviceLogin
		}
		if _, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok {
			return transient, adviceReach
		}
		return transient, ""
	}
	f := faults[code]
	if f.class == poison && aboutTable(message) {
		return fatal, adviceTables
	}
	return f.class, f.advice
}

// aboutTable tells a table whose key is another one than ours from an item that cannot be stored: its refusals have one code.
func aboutTable(message string) bool {
	for _, s := range []string{"does not match the schema", "Type mismatch for key", "Missing the key", "missing a key", "key conditions were not unique"} {
		if strings.Contains(message, s) {
			return true
		}
	}
	return false
}

// refused reports whether the condition of a write was not met, and the item that was in its way where it was asked for.
func refused(err error) (item, bool) {
	if c, ok := errors.AsType[*types.ConditionalCheckFailedException](err); ok {
		return c.Item, true
	}
	return nil, false
}

// explain says what could not be done with which table, marks the class and adds what to do. nil stays nil.
func explain(verb, table string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || fault.IsFatal(err) || fault.IsPoison(err) {
		return fmt.Errorf("%s %s: %w", verb, table, err)
	}
	c, advice := classify(err)
	if advice == "" {
		err = fmt.Errorf("%s %s: %w", verb, table, err)
	} else {
		err = fmt.Errorf("%s %s: %w: %s", verb, table, err, advice)
	}
	switch c {
	case poison:
		return fault.Poison(err)
	case fatal:
		return fault.Fatal(err)
	case transient, done:
	}
	return err
}
