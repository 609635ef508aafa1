package app

import (
	"strings"
	"testing"
)

func TestALoginByIAMTakesItsCredentialsFromTheEnvironment(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	iam := SASL{Mechanism: mskIAM}
	if _, err := iam.login(t.Context()); err == nil || !strings.Contains(err.Error(), "give kafka.sasl.region, or AWS_REGION") {
		t.Errorf("without a region: %v", err)
	}
	t.Setenv("AWS_REGION", "eu-west-1")
	t.Setenv("AWS_ACCESS_KEY_ID", "KEY")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "a secret")
	for region, want := range map[string]string{"": "eu-west-1", "us-east-2": "us-east-2"} {
		iam.Region = region
		got, err := iam.login(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Mechanism != "AWS_MSK_IAM" || got.IAM.Region != want {
			t.Errorf("login at %q in %q, want AWS_MSK_IAM in %q", got.Mechanism, got.IAM.Region, want)
		}
		if c, err := got.IAM.Credentials.Retrieve(t.Context()); err != nil || c.AccessKeyID != "KEY" {
			t.Errorf("credentials of %q, %v", c.AccessKeyID, err)
		}
	}
}
