package kafkalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/segmentio/kafka-go/sasl"
)

// rotating gives other credentials each time it is asked, as a role does when a session has ended.
func rotating() aws.CredentialsProviderFunc {
	n := 0
	return func(context.Context) (aws.Credentials, error) {
		n++
		return aws.Credentials{
			AccessKeyID: fmt.Sprint("KEY", n), SecretAccessKey: fmt.Sprint("a secret ", n), SessionToken: fmt.Sprint("token ", n),
			CanExpire: true, Expires: time.Now().Add(time.Minute),
		}, nil
	}
}

func TestEachConnectLogsInWithTheCredentialsOfThatMoment(t *testing.T) {
	t.Parallel()
	m, err := SASL{Mechanism: "AWS_MSK_IAM", IAM: IAM{Region: "eu-central-1", Credentials: rotating()}}.mechanism()
	if err != nil {
		t.Fatal(err)
	}
	if m.Name() != "AWS_MSK_IAM" {
		t.Errorf("the mechanism is %q", m.Name())
	}
	for n := 1; n <= 3; n++ {
		ctx := sasl.WithMetadata(t.Context(), &sasl.Metadata{Host: "b-1.msk.test", Port: 9098})
		session, first, err := m.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var said map[string]string
		if err := json.Unmarshal(first, &said); err != nil {
			t.Fatal(err)
		}
		if said["host"] != "b-1.msk.test" || said["action"] != "kafka-cluster:Connect" || said["x-amz-security-token"] != fmt.Sprint("token ", n) ||
			!strings.HasPrefix(said["x-amz-credential"], fmt.Sprint("KEY", n, "/")) || !strings.HasSuffix(said["x-amz-credential"], "/eu-central-1/kafka-cluster/aws4_request") {
			t.Errorf("connect %d says %s", n, first)
		}
		if strings.Contains(string(first), "a secret") || said["x-amz-signature"] == "" {
			t.Errorf("connect %d shows the secret, or no signature", n)
		}
		if done, _, err := session.Next(ctx, nil); !done || err != nil {
			t.Errorf("done %v, %v after the broker's answer", done, err)
		}
	}
}

func TestALoginWithoutCredentialsSaysSo(t *testing.T) {
	t.Parallel()
	none := errors.New("no role here")
	m, err := SASL{Mechanism: "aws_msk_iam", IAM: IAM{Region: "r", Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, none
	})}}.mechanism()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Start(sasl.WithMetadata(t.Context(), &sasl.Metadata{Host: "b-1", Port: 9098})); !errors.Is(err, none) {
		t.Errorf("got %v", err)
	}
	for _, i := range []IAM{{}, {Region: "r"}, {Credentials: rotating()}} {
		if _, err := (SASL{Mechanism: "AWS_MSK_IAM", IAM: i}).mechanism(); err == nil {
			t.Errorf("%+v is taken", i)
		}
	}
}
