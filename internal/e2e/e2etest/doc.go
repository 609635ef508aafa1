// Package e2etest runs our commands as processes of their own and talks to them as users do: over MQTT, HTTP and SQL. Tests
// only use it.
package e2etest
