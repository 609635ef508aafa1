// Writer consumes Kafka and writes to the sinks, one consumer group for each.
package main

import (
	"os"

	"github.com/restante/restante/internal/app"
)

func main() { os.Exit(app.Main(app.ProcessWriter, app.RunWriter)) }
