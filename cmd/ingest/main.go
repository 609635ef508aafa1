// Ingest takes MQTT events from the sources and produces them to Kafka.
package main

import (
	"os"

	"github.com/restante/restante/internal/app"
)

func main() { os.Exit(app.Main(app.ProcessIngest, app.RunIngest)) }
