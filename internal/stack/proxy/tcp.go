// Package proxy stands between a client and a real server in tests, and does to their connections what networks and busy servers do.
// [TCP] knows bytes only; [DynamoDB] knows that protocol's answers.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Mode is what a TCP proxy does with what comes.
type Mode int

// The modes of a TCP proxy.
const (
	// Pass hands everything on.
	Pass Mode = iota
	// Hold hands nothing on in either direction, as a network that is cut: new connections open and stay silent. With the next mode that
	// passes, what was held goes on.
	Hold
	// Swallow hands on what clients send and drops what the server answers. A connection that lost bytes so is cut at the next mode.
	Swallow
	// Refuse cuts all connections and every new one at once.
	Refuse
)

// TCP is a proxy for one server. Its methods may be called from any goroutine.
type TCP struct {
	target   string
	listener net.Listener
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu        sync.Mutex
	mode      Mode
	delay     time.Duration
	changed   chan struct{} // closed by the next change of mode
	links     map[*link]bool
	swallowed int64
}

// link is one connection of a client with its connection to the server.
type link struct {
	client, server *net.TCPConn
	done           chan struct{} // closed when it is cut
	once           sync.Once
	lossy          bool // bytes were swallowed; under the mutex of TCP
}

// ListenTCP starts a proxy on a free port of 127.0.0.1 for the server at target, host:port. It passes until Set says otherwise. Close
// ends it.
func ListenTCP(target string) (*TCP, error) {
	ctx, stop := context.WithCancel(context.Background())
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		stop()
		return nil, fmt.Errorf("listen for clients of %s: %w", target, err)
	}
	p := &TCP{target: target, listener: l, stop: stop, changed: make(chan struct{}), links: map[*link]bool{}}
	p.running.Go(func() { p.accept(ctx) }) // ends with the listener
	return p, nil
}

// Address is where clients connect, host:port.
func (p *TCP) Address() string { return p.listener.Addr().String() }

// Set changes the mode, for the open connections too.
func (p *TCP) Set(m Mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.links {
		if m == Refuse || l.lossy && m != Swallow {
			l.cut()
		}
	}
}

// Delay makes every piece of data wait for d, in either direction, from now on.
func (p *TCP) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Cut resets all open connections. New ones are served as the mode says.
func (p *TCP) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Open is the number of open connections.
func (p *TCP) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Swallowed is how many bytes of answers were dropped.
func (p *TCP) Swallowed() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swallowed
}

// Close cuts all connections and waits until nothing of the proxy runs.
func (p *TCP) Close() error {
	p.stop()
	err := p.listener.Close()
	p.Set(Refuse)
	p.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *TCP) accept(ctx context.Context) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(ctx, client.(*net.TCPConn)) }) // ends with the link
	}
}

func (p *TCP) serve(ctx context.Context, client *net.TCPConn) {
	if mode, _, _ := p.state(); mode == Refuse {
		reset(client)
		return
	}
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	l := &link{client: client, server: conn.(*net.TCPConn), done: make(chan struct{})}
	if !p.add(l) {
		l.cut()
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(l, l.server, l.client, true) })
	pumps.Go(func() { p.pump(l, l.client, l.server, false) })
	pumps.Wait()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
	l.cut()
}

func (p *TCP) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == Refuse {
		return false
	}
	p.links[l] = true
	return true
}

func (p *TCP) state() (Mode, time.Duration, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode, p.delay, p.changed
}

// pump hands on what src sends until its end.
func (p *TCP) pump(l *link, dst, src *net.TCPConn, toServer bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 && !p.forward(l, dst, buf[:n], toServer) {
			return
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			l.cut()
		} else if p.forward(l, dst, nil, toServer) {
			_ = dst.CloseWrite()
		}
		return
	}
}

// forward writes data when the mode lets it; no data stands for the end of the stream. False: the link is cut.
func (p *TCP) forward(l *link, dst *net.TCPConn, data []byte, toServer bool) bool {
	_, delay, _ := p.state()
	if delay > 0 {
		select {
		case <-l.done:
			return false
		case <-time.After(delay):
		}
	}
	for {
		p.mu.Lock()
		mode, changed := p.mode, p.changed
		swallow := mode == Swallow && !toServer
		if swallow {
			l.lossy = true
			p.swallowed += int64(len(data))
		}
		p.mu.Unlock()
		switch {
		case mode == Hold, swallow && len(data) == 0: // the end of the answers is an answer too
			select {
			case <-l.done:
				return false
			case <-changed:
			}
		case mode == Refuse:
			l.cut()
			return false
		case swallow:
			return true
		default:
			if _, err := dst.Write(data); err != nil {
				l.cut()
				return false
			}
			return true
		}
	}
}

// cut resets both connections.
func (l *link) cut() {
	l.once.Do(func() {
		close(l.done)
		reset(l.client)
		reset(l.server)
	})
}

func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}
