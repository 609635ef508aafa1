// Replayer reacts to subscribes: it fetches stored messages and hands them over.
package main

import (
	"os"

	"github.com/restante/restante/internal/app"
)

func main() { os.Exit(app.Main(app.ProcessReplayer, app.RunReplayer)) }
