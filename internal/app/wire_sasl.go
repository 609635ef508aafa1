package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/restante/restante/pipeline/kafkalog"
)

// mskIAM is the login of Amazon MSK.
const mskIAM = "aws-msk-iam"

// login is the login as the driver takes it.
func (s SASL) login(ctx context.Context) (kafkalog.SASL, error) {
	if s.Mechanism != mskIAM {
		return kafkalog.SASL{Mechanism: strings.ToUpper(s.Mechanism), User: s.User, Password: string(s.Password)}, nil
	}
	// Reads the environment and AWS's files; what needs the network is asked at the first connect.
	aws, err := config.LoadDefaultConfig(ctx, config.WithRegion(s.Region))
	if err != nil {
		return kafkalog.SASL{}, fmt.Errorf("find AWS's credentials: %w", err)
	}
	region := cmp.Or(s.Region, aws.Region)
	if region == "" {
		return kafkalog.SASL{}, errors.New("find AWS's region: give kafka.sasl.region, or AWS_REGION in the environment")
	}
	return kafkalog.SASL{Mechanism: "AWS_MSK_IAM", IAM: kafkalog.IAM{Region: region, Credentials: aws.Credentials}}, nil
}
