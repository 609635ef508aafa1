package charttest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryPodIsRestricted holds each pod to the standard "restricted" of Kubernetes, and to what the chart promises beyond it.
func TestEveryPodIsRestricted(t *testing.T) {
	t.Parallel()
	for name, file := range ciFiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := pods(parse(t, render(t, newest, "-f", file)))
			if len(all) < 5 { // three processes and two Jobs
				t.Fatalf("only %d pods are rendered", len(all))
			}
			for pod, template := range all {
				for _, fault := range unrestricted(template) {
					t.Errorf("%s: %s", pod, fault)
				}
			}
		})
	}
}

// unrestricted is what a pod may that it need not.
func unrestricted(template object) []string {
	var faults []string
	want := func(what string, v, want any) {
		if !cmp.Equal(v, want) {
			faults = append(faults, what)
		}
	}
	want("may be root", template.at("spec", "securityContext", "runAsNonRoot"), true)
	want("has no number for its user", template.at("spec", "securityContext", "runAsUser"), 65532)
	want("has no seccomp profile", template.at("spec", "securityContext", "seccompProfile", "type"), "RuntimeDefault")
	want("gets a token", template.at("spec", "automountServiceAccountToken"), false)
	want("sees the Services of others", template.at("spec", "enableServiceLinks"), false)
	for _, key := range []string{"hostNetwork", "hostPID", "hostIPC"} {
		want("has "+key, template.at("spec", key), nil)
	}
	for _, v := range template.objects("spec", "volumes") {
		want("sees a path of its node", v.at("hostPath"), nil)
	}
	for _, c := range template.objects("spec", "containers") {
		if programOf(c) == "" {
			continue // not ours
		}
		want("may gain rights", c.at("securityContext", "allowPrivilegeEscalation"), false)
		want("may write to its image", c.at("securityContext", "readOnlyRootFilesystem"), true)
		want("keeps capabilities", c.at("securityContext", "capabilities", "drop"), []any{"ALL"})
		want("has no limit of memory", c.at("resources", "limits", "memory") != nil, true)
	}
	return faults
}

// TestWhatIsRenderedTwiceIsTheSame: nothing random is in it, so that GitOps finds nothing to do.
func TestWhatIsRenderedTwiceIsTheSame(t *testing.T) {
	t.Parallel()
	for name, file := range ciFiles(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := render(t, newest, "-f", file)
			if d := cmp.Diff(text, render(t, newest, "-f", file)); d != "" {
				t.Errorf("rendered twice (-first +second):\n%s", d)
			}
			if strings.Contains(text, "kind: Secret\n") {
				t.Error("the chart makes a Secret")
			}
		})
	}
}
