// Package charttest tests the Helm chart by what it renders: with the tools of "make chart-tools", and the programs' own check.
package charttest
