package stack

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/xml"
	"fmt"
)

// Kind is a kind of server.
type Kind int

// The kinds of servers.
const (
	Kafka Kind = iota + 1
	Cassandra
	DynamoDB
	HiveMQ
)

// User and Password log in to Cassandra, as a superuser.
const (
	User     = "root"
	Password = "public"
)

// String gives the name of the kind in lower case.
func (k Kind) String() string {
	switch k {
	case Kafka:
		return "kafka"
	case Cassandra:
		return "cassandra"
	case DynamoDB:
		return "dynamodb"
	case HiveMQ:
		return "hivemq"
	}
	return fmt.Sprintf("server of kind %d", int(k))
}

// Env is the environment variable that holds the address of a shared server of the kind: host:port for Kafka, Cassandra and HiveMQ, the URL of
// the endpoint for DynamoDB.
func (k Kind) Env() string {
	switch k {
	case Kafka:
		return "RESTANTE_TEST_KAFKA"
	case Cassandra:
		return "RESTANTE_TEST_CASSANDRA"
	case DynamoDB:
		return "RESTANTE_TEST_DYNAMODB"
	case HiveMQ:
		return "RESTANTE_TEST_HIVEMQ"
	}
	return ""
}

//go:embed poms
var poms embed.FS

// release is what Maven is asked for.
type release struct {
	pom     []byte
	version string
	sum     string // of the pom: another pom is another release
}

func (k Kind) release() (release, error) {
	pom, err := poms.ReadFile("poms/" + k.String() + ".xml")
	if err != nil {
		return release{}, fmt.Errorf("read the pom of %s: %w", k, err)
	}
	var project struct {
		Versions []string `xml:"dependencies>dependency>version"`
	}
	if err := xml.Unmarshal(pom, &project); err != nil {
		return release{}, fmt.Errorf("read the pom of %s: %w", k, err)
	}
	if len(project.Versions) == 0 {
		return release{}, fmt.Errorf("read the pom of %s: it names no version", k)
	}
	sum := sha256.Sum256(pom)
	return release{pom: pom, version: project.Versions[0], sum: hex.EncodeToString(sum[:4])}, nil
}
