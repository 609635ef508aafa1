package kafkalog

import (
	"errors"

	"github.com/aws/aws-sdk-go-v2/aws"
	signer "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/aws_msk_iam_v2"
)

// IAM is a login by AWS's identities, for Amazon MSK. Credentials are asked for at each connect, so that those which expire, as all of
// a role do, are those of that moment; the provider caches them.
type IAM struct {
	Region      string
	Credentials aws.CredentialsProvider
}

func (i IAM) mechanism() (sasl.Mechanism, error) {
	if i.Region == "" || i.Credentials == nil {
		return nil, errors.New("sasl mechanism AWS_MSK_IAM needs a region and credentials")
	}
	return &aws_msk_iam_v2.Mechanism{Signer: signer.NewSigner(), Credentials: i.Credentials, Region: i.Region}, nil
}
