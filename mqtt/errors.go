package mqtt

import "github.com/restante/restante/pipeline"

// ErrExpired is what Publish returns for a message whose time is over: it was not sent.
var ErrExpired = pipeline.ErrExpired
