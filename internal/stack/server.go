package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/restante/restante/internal/certtest"
	"github.com/restante/restante/internal/stack/ports"
)

// readyLimit is how long a server may take until it answers: a loaded machine of two cores has needed 31 s for Cassandra.
const readyLimit = 3 * time.Minute

// pingLimit is how long one answer may take.
const pingLimit = 10 * time.Second

// stopLimit is how long a server may take for its end before it is killed.
const stopLimit = 60 * time.Second

// recipe is how a kind of server is started.
type recipe struct {
	ports   int
	archive bool                                                       // of loaded classes: Java can make one
	flags   []string                                                   // of Java
	prepare func(in *install, s site) error                            // writes what the server reads; s.dir is new
	main    func(in *install, s site) []string                         // properties, the main class and its arguments
	address func(s site) string                                        // for clients
	ping    func(ctx context.Context, address string, nodes int) error // nil: it serves, together with all nodes
}

//nolint:gochecknoglobals // never written
var recipes = map[Kind]recipe{Kafka: kafkaRecipe, Cassandra: cassandraRecipe, DynamoDB: dynamoDBRecipe, HiveMQ: hiveMQRecipe}

// Ping returns nil when the server at the address serves: it gives its metadata, lets [User] log in, answers for its tables, or takes a client.
func Ping(ctx context.Context, kind Kind, address string) error {
	ctx, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	return recipes[kind].ping(ctx, address, 1)
}

// site is where one server lives, for all its starts.
type site struct {
	dir   string
	ports []int
	node  int     // from 0
	nodes [][]int // the ports of all nodes of the cluster
	fast  bool    // nothing need outlive its end
	tls   *TLS
}

// Server is a real server, a child of this process. Its methods may be called from any goroutine.
type Server struct {
	in   *install
	site site
	held []ports.Port
	java []string // flags for this server only

	mu      sync.Mutex
	process *process
	ended   bool // by Stop or Kill
}

// Config says what to start.
type Config struct {
	Kind Kind
	// Dir is an existing directory for the data and the logs of the servers; it is theirs alone.
	Dir string
	// Nodes is the number of nodes, 1 when it is 0. Only Kafka has more.
	Nodes int
	// Fast lets the servers forget at their end what they acknowledged: DynamoDB keeps its tables in memory, and Cassandra does not wait
	// for its commit log, of which a kill takes the last tenth of a second.
	Fast bool
	// TLS lets clients of Kafka and Cassandra in by TLS too, see [Server.SSL].
	TLS *TLS
}

// TLS is what a server shows to its clients, and whom it trusts: those that the authority has signed.
type TLS struct {
	Identity certtest.Pair
	Clients  *certtest.Authority
}

// Start starts servers and returns when each of them serves. The first use of a kind fetches its jars. When it fails nothing is left
// running, and the error shows the end of a server's log. Close ends the servers.
func Start(ctx context.Context, c Config) ([]*Server, error) {
	if _, known := recipes[c.Kind]; !known {
		return nil, fmt.Errorf("start %s: there is no such kind", c.Kind)
	}
	nodes := max(c.Nodes, 1)
	if nodes > 1 && c.Kind != Kafka {
		return nil, fmt.Errorf("start %d nodes of %s: only kafka has several", nodes, c.Kind)
	}
	in, err := prepare(ctx, c.Kind)
	if err != nil {
		return nil, err
	}
	return startNodes(ctx, in, startPlan{dir: c.Dir, nodes: nodes, fast: c.Fast, tls: c.TLS})
}

type startPlan struct {
	dir   string
	nodes int
	fast  bool
	tls   *TLS
	java  []string
	// take is [ports.Take] where a test does not know better.
	take func(n int) ([]ports.Port, error)
}

// startNodes tries again with other ports when another program took one first.
func startNodes(ctx context.Context, in *install, plan startPlan) ([]*Server, error) {
	const tries = 5
	for try := 1; ; try++ {
		servers, err := newNodes(in, plan, try)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", in.kind, err)
		}
		if err = startAll(ctx, servers); err == nil {
			return servers, nil
		}
		for _, s := range servers {
			err = errors.Join(err, s.Close())
		}
		if try == tries || !portWasTaken(servers) {
			return nil, fmt.Errorf("start %s: %w", in.kind, err)
		}
	}
}

// newNodes makes servers that are not started yet.
func newNodes(in *install, plan startPlan, try int) ([]*Server, error) {
	r := recipes[in.kind]
	take := ports.Take
	if plan.take != nil {
		take = plan.take
	}
	held, err := take(r.ports * plan.nodes)
	if err != nil {
		return nil, err
	}
	all := make([][]int, plan.nodes)
	for i := range all {
		for _, p := range held[i*r.ports : (i+1)*r.ports] {
			all[i] = append(all[i], p.Number)
		}
	}
	servers := make([]*Server, plan.nodes)
	for i := range servers {
		s := site{
			dir: filepath.Join(plan.dir, fmt.Sprintf("%s-%d.%d", in.kind, i+1, try)), ports: all[i], node: i, nodes: all, fast: plan.fast, tls: plan.tls,
		}
		servers[i] = &Server{in: in, site: s, held: held[i*r.ports : (i+1)*r.ports], java: plan.java, ended: true}
		if err = os.Mkdir(s.dir, 0o750); err == nil {
			err = r.prepare(in, s)
		}
		if err != nil {
			ports.Free(held)
			return nil, fmt.Errorf("prepare %s: %w", s.dir, err)
		}
	}
	return servers, nil
}

// startAll starts the servers side by side and waits for all: a node of a cluster is ready only with the others.
func startAll(ctx context.Context, servers []*Server) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.Start(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func portWasTaken(servers []*Server) bool {
	return slices.ContainsFunc(servers, func(s *Server) bool {
		text, err := os.ReadFile(s.Log())
		log := strings.ToLower(string(text))
		return err == nil && (strings.Contains(log, "address already in use") || strings.Contains(log, "in use by another process"))
	})
}

// Kind is the kind of the server.
func (s *Server) Kind() Kind { return s.in.kind }

// Address is what [Kind.Env] holds for a shared server. It stays the same over restarts.
func (s *Server) Address() string { return recipes[s.in.kind].address(s.site) }

// SSL is where a server with TLS demands a certificate of its clients: a port of its own for Kafka, the same for Cassandra.
func (s *Server) SSL() string {
	if s.Kind() == Kafka {
		return loopback(s.site.ports[2])
	}
	return s.Address()
}

// SASL is where a Kafka with TLS lets clients log in.
func (s *Server) SASL() string { return loopback(s.site.ports[3]) }

// Log is the file that holds what the server printed, over all its starts.
func (s *Server) Log() string { return filepath.Join(s.site.dir, "log") }

// PID is the process id of the running server, or of the last one.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.pid
}

// Start starts the server again after Stop or Kill, on the same data and ports, and returns when it serves. An error says why it does
// not, with the end of its log, and leaves it stopped.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		return fmt.Errorf("start %s: it runs already", s.in.kind)
	}
	p, err := s.launch()
	if err != nil {
		return err
	}
	s.process, s.ended = p, false
	if err := s.await(ctx, p); err != nil {
		s.ended = true
		return errors.Join(err, p.kill())
	}
	return nil
}

// launch starts the process, which does not serve yet.
func (s *Server) launch() (*process, error) {
	r := recipes[s.in.kind]
	argv := slices.Concat(s.in.java, r.flags, s.java)
	if s.in.archive != "" {
		argv = append(argv, "-XX:SharedArchiveFile="+s.in.archive)
	}
	argv = slices.Concat(argv, []string{"-cp", s.in.classPath}, r.main(s.in, s.site))
	return spawn(argv, s.site.dir, s.Log())
}

// await returns when the server serves.
func (s *Server) await(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	// An attempt ends with the process, too: what listens there instead may never answer.
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	var watch sync.WaitGroup
	defer watch.Wait()
	defer close(stop)
	watch.Go(func() {
		select {
		case <-p.exited:
			cancel()
		case <-stop:
		}
	})
	r := recipes[s.in.kind]
	var said error
	for {
		attempt, cancel := context.WithTimeout(alive, pingLimit)
		said = r.ping(attempt, s.Address(), len(s.site.nodes))
		cancel()
		select {
		case <-p.exited:
			return fmt.Errorf("%s on %s ended before it served (%w)\n%s", s.in.kind, s.Address(), describe(p.err), tail(s.Log()))
		case <-ctx.Done():
			return fmt.Errorf("%s on %s does not serve (%w): %w\n%s", s.in.kind, s.Address(), said, ctx.Err(), tail(s.Log()))
		case <-time.After(50 * time.Millisecond):
			if said == nil {
				return nil
			}
		}
	}
}

var errExitZero = errors.New("exit status 0")

func describe(err error) error {
	if err == nil {
		return errExitZero
	}
	return err
}

// Stop asks the server to end in its own way and waits for it; when that takes over a minute or ctx ends, it is killed and the error says
// so. A server that has ended is no error.
func (s *Server) Stop(ctx context.Context) error {
	return s.end(func(p *process) error {
		ctx, cancel := context.WithTimeout(ctx, stopLimit)
		defer cancel()
		return p.stop(ctx)
	})
}

// Kill ends the server at once, as a power cut would end its process, and waits until it is gone.
func (s *Server) Kill() error { return s.end((*process).kill) }

func (s *Server) end(how func(*process) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.process == nil {
		return nil
	}
	if err := how(s.process); err != nil {
		return fmt.Errorf("end %s: %w", s.in.kind, err)
	}
	return nil
}

// Restart is Stop and Start.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return s.Start(ctx)
}

// Pause makes the server stand still: its connections stay open and nothing answers on them, until Resume.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return s.process.signal(sig)
}

// Close kills the server and gives its ports back. It returns an error when the server had ended by itself, with the end of its log.
func (s *Server) Close() error {
	err := s.died()
	err = errors.Join(err, s.Kill())
	s.free()
	return err
}

func (s *Server) free() { ports.Free(s.held) }

// died tells, with the end of its log, of a server that ended although nobody asked it to.
func (s *Server) died() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.process == nil {
		return nil
	}
	select {
	case <-s.process.exited:
		return fmt.Errorf("%s on %s ended by itself (%w)\n%s", s.in.kind, s.Address(), describe(s.process.err), tail(s.Log()))
	default:
		return nil
	}
}
