package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/restante/restante/internal/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(stack.Main(m)) }

// echo answers each line with itself and counts the lines it got.
type echo struct {
	net.Listener
	mu    sync.Mutex
	lines int
	conns sync.WaitGroup
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{Listener: l}
	e.conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			e.conns.Go(func() {
				defer func() { _ = conn.Close() }()
				for lines := bufio.NewReader(conn); ; {
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					e.mu.Lock()
					e.lines++
					e.mu.Unlock()
					_, _ = io.WriteString(conn, line)
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); e.conns.Wait() })
	return e
}

func (e *echo) got() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lines
}

func newTCP(t *testing.T, target string) *TCP {
	t.Helper()
	p, err := ListenTCP(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

type client struct {
	net.Conn
	answers *bufio.Reader
}

func dial(t *testing.T, p *TCP) client {
	t.Helper()
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{Conn: conn, answers: bufio.NewReader(conn)}
}

// ask sends a line and wants it back within d.
func (c client) ask(line string, d time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(d))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	return c.hear(line, d)
}

func (c client) hear(line string, d time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(d))
	got, err := c.answers.ReadString('\n')
	if err == nil && got != line+"\n" {
		return errors.New("got " + got)
	}
	return err
}

const (
	long  = 10 * time.Second
	short = 150 * time.Millisecond
)

func await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !reached(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}

func TestWhatIsHeldGoesOnLater(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	p := newTCP(t, e.Addr().String())
	c := dial(t, p)
	if err := c.ask("one", long); err != nil {
		t.Fatal(err)
	}
	p.Set(Hold)
	if err := c.ask("two", short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("held: got %v, want silence", err)
	}
	late := dial(t, p)
	if err := late.ask("three", short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("held, a new connection: got %v, want silence", err)
	}
	if n := e.got(); n != 1 {
		t.Errorf("the server got %d lines, want 1", n)
	}
	p.Set(Pass)
	if err := errors.Join(c.hear("two", long), late.hear("three", long)); err != nil {
		t.Error(err)
	}
}

func TestASwallowedAnswerWasAskedFor(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	p := newTCP(t, e.Addr().String())
	c := dial(t, p)
	p.Set(Swallow)
	if err := c.ask("lost", short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("swallowed: got %v, want silence", err)
	}
	await(t, "the line at the server", func() bool { return e.got() == 1 })
	await(t, "its answer at the proxy", func() bool { return p.Swallowed() == int64(len("lost\n")) })
	p.Set(Pass)
	if err := c.ask("late", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that lost bytes goes on: %v", err)
	}
	if err := dial(t, p).ask("new", long); err != nil {
		t.Error(err)
	}
}

func TestCutAndRefusedConnectionsEndAtOnce(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	p := newTCP(t, e.Addr().String())
	for sentence, end := range map[string]func(){"cut": p.Cut, "refused": func() { p.Set(Refuse) }} {
		c := dial(t, p)
		if err := c.ask("one", long); err != nil {
			t.Fatal(sentence, err)
		}
		end()
		if err := c.ask("two", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: got %v, want an end", sentence, err)
		}
		p.Set(Pass)
		await(t, "the end of the connection", func() bool { return p.Open() == 0 })
		if err := dial(t, p).ask("three", long); err != nil {
			t.Error(sentence, err)
		}
		p.Cut()
		await(t, "the end of the connection", func() bool { return p.Open() == 0 })
	}
	p.Set(Refuse)
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		return // reset before it was known
	}
	defer func() { _ = conn.Close() }()
	if err := (client{Conn: conn, answers: bufio.NewReader(conn)}).ask("one", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("refused: got %v, want an end", err)
	}
}

func TestADelayHoldsEachDirection(t *testing.T) {
	t.Parallel()
	p := newTCP(t, newEcho(t).Addr().String())
	p.Delay(short)
	begun := time.Now()
	if err := dial(t, p).ask("one", long); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 2*short {
		t.Errorf("there and back took %v, want at least %v", took, 2*short)
	}
}

func TestNoServerIsNoConnection(t *testing.T) {
	t.Parallel()
	e := newEcho(t)
	target := e.Addr().String()
	_ = e.Close()
	p := newTCP(t, target)
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		return // reset before it was known
	}
	defer func() { _ = conn.Close() }()
	if err := (client{Conn: conn, answers: bufio.NewReader(conn)}).ask("one", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want an end", err)
	}
}
