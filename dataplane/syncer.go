package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Times of the Syncer that no flag sets.
const (
	backOffFirst = 50 * time.Millisecond // before the first retry
	backOffMost  = 10 * time.Second      // between later retries, jitter apart
	// pokedBackOff is how soon after a failure a new Snapshot is tried: it may be
	// the remedy, but must not make a failing backend run without a pause.
	pokedBackOff = time.Second
	// longSync is how long a failed Sync takes from which on a new Snapshot waits for
	// the back-off: the processor and the kernel's locks are others' as well.
	longSync = 100 * time.Millisecond
	// Without a MinInterval:
	pausePerSync     = 4
	mostPause        = 20 * time.Millisecond
	mostPauseGrowing = time.Second // where the cost of a Sync grows with all ServicePorts
	// quickPerSync and quickRebate are of such Syncs while they are quick: a change
	// shortly after another waits for the pause much longer than for its Sync.
	quickPerSync = 2
	quickRebate  = 100 * time.Millisecond
	// Somebody who changes what the Backend wrote is answered after disturbedFirst,
	// when the rest of the change is likely over, and once in disturbedPause.
	disturbedFirst = 50 * time.Millisecond
	disturbedPause = time.Second
	// Refused ServicePorts are tried again after pauses from refusedFirst to
	// refusedMost: what a kernel refuses, it seldom takes later. There is retryPause
	// between two such tries, whichever ServicePorts they are of. When a ServicePort
	// went, all are tried at once, but once in freedPause; when one has become
	// smaller, once in shrunkPause.
	refusedFirst = time.Second
	refusedMost  = 5 * time.Minute
	retryPause   = 5 * time.Second
	freedPause   = 10 * time.Second
	shrunkPause  = 30 * time.Second
)

// SyncerConfig is what a Syncer is told.
type SyncerConfig struct {
	Log *slog.Logger
	// MinInterval is the least time from the end of one Sync to the start of the
	// next: Snapshots that come meanwhile are one Sync. A first Snapshot after a
	// quiet time is taken at once. Zero means four times what the last Sync took. That
	// is 20 ms at most, so that what is cheap does not wait. With a Backend whose cost
	// grows with all ServicePorts it is 100 ms less, but twice what the last Sync took
	// at least and 1 s at most: Syncs of up to 50 ms take a third of the time, and
	// those of 250 ms a fifth.
	MinInterval time.Duration
	// AuditInterval is how often the kernel is read back, whatever changed, and
	// repaired where it is not as programmed. It is longer where that takes long, so
	// that a hundredth of the time is spent on it. Default 1 minute; negative: never.
	AuditInterval time.Duration
	// Next returns the newest Snapshot, or nil if it did so before. It is called
	// when a Sync is about to begin, after Notify. nil: Submit has them all.
	Next func() *Snapshot
	// Report is called after every Sync, from the Syncer's goroutine: it must not
	// block. nil: nobody is told.
	Report func(SyncReport)
}

// SyncReport tells of one Sync.
type SyncReport struct {
	Want *Snapshot // what was asked for
	// Err is why the Sync failed; nil means that it did not. Refused ServicePorts
	// are no failure.
	Err    error
	Served uint64 // newest revision that is in the kernel but for Refused; 0: none yet
	// Refused are all ServicePorts that the Backend cannot program, and Tried those of
	// them that this Sync tried; both sorted by ID.
	Refused, Tried []PortError
	Failing        []FamilyStatus // families that are not programmed while others are, sorted
	Audit          bool           // the kernel was read back
	Took           time.Duration  // of the Sync alone
	// InForce is what the kernel forwards now, with the ServicePorts of Failing as
	// they were last known. Nil means that it is not known.
	InForce *Snapshot
}

// SyncStatus is how the kernel stands to what is wanted.
type SyncStatus struct {
	Wanted  uint64 // revision of the newest Snapshot; 0: none yet
	InForce uint64 // newest revision that is wholly in the kernel; 0: none yet
	Served  uint64 // newest revision that is in the kernel but for Refused; 0: none yet
	// Damaged is since when the kernel is known to differ from what was programmed,
	// and is not repaired yet; zero: it does not.
	Damaged  time.Time
	Behind   time.Time // since when the kernel lacks something wanted beside Refused; zero: it does not
	LastSync time.Time // end of the last Sync after which the kernel lacked nothing but Refused; zero: none yet
	LastPart time.Time // as LastSync, for the families that are not Failing
	Err      error     // why the last Sync failed; nil: it did not
	// Refused are the ServicePorts that the Backend cannot program, and why, as
	// they were tried last; sorted by ID.
	Refused []PortError
	// Failing are the families that are not programmed while others are, sorted.
	// While there are any, InForce, Served and LastSync stay. Behind is of the others.
	Failing []FamilyStatus
}

// FamilyStatus is what is wrong with an address family.
type FamilyStatus struct {
	Family Family
	Since  time.Time // since when it is not programmed
	Err    error     // of the last try
}

// Syncer gives the newest Snapshot to a Backend: at once, many changes as one,
// again after a failure with growing pauses, and every now and then against
// the kernel's real state. A ServicePort that the Backend refuses waits on its
// own and holds up no other.
type Syncer struct {
	backend Backend
	traits  Traits
	cfg     SyncerConfig

	mu     sync.Mutex
	want   *Snapshot
	status SyncStatus
	drift  Drift

	poke chan struct{}              // one slot: there is a new Snapshot
	asks chan func(context.Context) // for Run's goroutine to do between two Syncs

	// Of Run's goroutine alone:
	inForce   *Snapshot // what the kernel holds; nil: unknown
	lastGood  *Snapshot // what it held when that was last known; nil: never
	tried     *Snapshot // what the last Sync was to bring
	refused   refusals
	faults    faults
	failures  int // failed Syncs in a row
	lastEnd   time.Time
	lastTook  time.Duration
	syncs     uint64        // begun so far
	audit     audit         // that goes on, or was the last
	audited   time.Time     // when the last one was over, or a Sync that read the kernel back
	auditCost time.Duration // of the last audit
	// clean: the last comparison found nothing, and no repair was made since.
	clean bool
	// disturbed: somebody else may have changed what the Backend wrote since the last
	// audit began. The next one is due at lookSoon.
	disturbed bool
	lookSoon  time.Time

	lookers sync.WaitGroup
	looks   chan look // from a look alongside Syncs; one slot
}

// NewSyncer readies a Syncer; Run starts it.
func NewSyncer(b Backend, cfg SyncerConfig) *Syncer {
	if cfg.AuditInterval == 0 {
		cfg.AuditInterval = time.Minute
	}
	return &Syncer{
		backend: b, traits: TraitsOf(b), cfg: cfg,
		poke: make(chan struct{}, 1), looks: make(chan look, 1), asks: make(chan func(context.Context)),
		refused: refusals{ports: map[PortID]refusal{}}, faults: faults{},
	}
}

// Submit makes s the wanted state. It never blocks; the newest wins.
func (s *Syncer) Submit(want *Snapshot) {
	s.mu.Lock()
	s.want = want
	s.status.Wanted = want.Revision
	if s.status.Behind.IsZero() {
		s.status.Behind = time.Now()
	}
	s.mu.Unlock()
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Status tells how the kernel stands to what is wanted.
func (s *Syncer) Status() SyncStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Run syncs until ctx ends. It does not start a Sync before the first Submit.
func (s *Syncer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Time{} // when the next Sync must be; zero: not before a Submit
	var disturbed <-chan struct{}
	if w, ok := s.backend.(Watched); ok {
		disturbed = w.Disturbed()
	}
	defer s.lookers.Wait()
	for {
		next := earlier(due, s.lookDue())
		wake := timer.C
		if next.IsZero() {
			wake = nil
		} else {
			timer.Reset(time.Until(next))
		}
		asks := s.asks
		if s.audit.running {
			asks = nil // they may look as well
		}
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
			due = s.afterPoke(due)
			continue
		case <-disturbed:
			s.afterDisturbance()
			continue
		case do := <-asks:
			last := s.lastEnd
			if do(ctx); s.lastEnd != last { // it was a repair
				due = s.nextDue(time.Now())
			}
			continue
		case l := <-s.looks:
			if s.looked(ctx, l); s.audit.over {
				due = time.Now()
			}
			continue
		case <-wake:
		}
		if ctx.Err() != nil {
			return
		}
		if look := s.lookDue(); !look.IsZero() && !time.Now().Before(look) {
			if s.startAudit(ctx); s.audit.over {
				due = time.Now()
			}
		}
		if !due.IsZero() && !time.Now().Before(due) {
			if !s.idle(time.Now()) {
				_ = s.syncOnce(ctx) // it is logged, and in the status
			}
			due = s.nextDue(time.Now())
		}
	}
}

// earlier returns the earlier of two times, where zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// afterPoke is when to sync now that there is a new Snapshot and a Sync was due
// at a time already.
func (s *Syncer) afterPoke(due time.Time) time.Time {
	pause := s.pause()
	if s.inForce == nil && s.failures > 0 {
		if s.lastTook >= longSync {
			return due
		}
		pause = pokedBackOff
	}
	soonest := s.lastEnd.Add(pause)
	if soonest.IsZero() { // before the first Sync, and at once
		soonest = time.Now()
	}
	if due.IsZero() || soonest.Before(due) {
		return soonest
	}
	return due
}

// pause returns the least time from the end of the last Sync to the next one.
func (s *Syncer) pause() time.Duration {
	pause := pausePerSync * s.lastTook
	switch {
	case s.cfg.MinInterval != 0:
		return s.cfg.MinInterval
	case !s.traits.CostGrows:
		return min(pause, mostPause)
	}
	return min(max(pause-quickRebate, quickPerSync*s.lastTook), mostPauseGrowing)
}

// afterDisturbance notes that somebody else may have changed what the Backend
// wrote, so that an audit is due soon.
func (s *Syncer) afterDisturbance() {
	if s.inForce == nil || s.cfg.AuditInterval < 0 { // it reads all back anyway, or nobody wants it to
		return
	}
	s.clean = false
	if s.disturbed {
		return
	}
	s.disturbed = true
	s.lookSoon = time.Now().Add(disturbedFirst)
	if again := s.audited.Add(max(disturbedPause, disturbedDuty*s.auditCost)); again.After(s.lookSoon) {
		s.lookSoon = again
	}
}

// nextDue is when to sync though nothing changes: a retry.
func (s *Syncer) nextDue(now time.Time) time.Time {
	if s.inForce == nil {
		return now.Add(backOff(s.failures))
	}
	return earlier(s.faults.due(), s.refused.again(s.faults.held(now)))
}

// backOff is the pause after so many failures in a row: doubling, with up to a
// quarter of jitter so that the nodes of a cluster do not retry in step.
func backOff(failures int) time.Duration {
	return growing(backOffFirst, backOffMost, failures)
}

func growing(first, most time.Duration, failures int) time.Duration {
	d := most
	if shift := failures - 1; shift < 16 {
		d = min(first<<max(shift, 0), most)
	}
	return d + rand.N(d/4)
}

// syncOnce gives the Backend the newest Snapshot.
func (s *Syncer) syncOnce(ctx context.Context) error {
	want := s.newest()
	s.tried = want
	start := time.Now()
	prev, found := s.inForce, s.audit.found
	readBack := prev == nil || s.audit.over && s.audit.read
	if s.audit.over && s.audit.repair {
		prev = nil
	}
	s.audit.over, s.audit.found = false, Verification{}
	s.clean = s.clean && prev != nil
	s.syncs++
	families := s.hold(s.faults.held(start))
	held := s.refused.heldBack(s.inForce, want, families, start)
	target := s.without(s.asKnown(want, families), held)
	mends := prev == nil || len(s.faults.families()) > 0
	err := s.backend.Sync(ctx, prev, target)
	end := time.Now()
	if ctx.Err() != nil { // stopped in the middle: no failure, and nobody waits for it
		return ctx.Err()
	}

	tried, err := s.settle(target, held, err, end)
	failed := (*FamilyError)(nil)
	errors.As(err, &failed)
	repaired := s.inForce != nil && failed == nil && len(families) == 0
	if mends && repaired {
		s.noteDamage(time.Time{})
	}
	if s.inForce != nil {
		s.faults.note(s.cfg.Log, families, failed, end, end.Sub(start))
	}
	if readBack && s.inForce != nil {
		s.audited = end
		if len(found.Differences) > 0 && repaired {
			found.Repaired = true
			s.noteRepair(found)
		}
	}
	s.lastEnd, s.lastTook = end, end.Sub(start)
	st := s.record(want, err, end)
	if s.cfg.Report != nil {
		s.cfg.Report(SyncReport{
			Want: want, Err: err, Served: st.Served, Refused: st.Refused, Tried: tried, Failing: st.Failing,
			Audit: readBack, Took: s.lastTook, InForce: s.inForce,
		})
	}
	return err
}

// without is want with some ServicePorts as the kernel was last known to have
// them, less the frontends that they do not want any more.
func (s *Syncer) without(want *Snapshot, ids []PortID) *Snapshot {
	if len(ids) == 0 {
		return want
	}
	var put []*ServicePort
	var remove []PortID
	for _, id := range ids {
		var old *ServicePort
		if s.lastGood != nil {
			old = Fallback(s.lastGood.Ports.Get(id), want.Ports.Get(id))
		}
		if old == nil || old == want.Ports.Get(id) { // of the same form that is refused nothing is sure
			remove = append(remove, id)
		} else {
			put = append(put, old)
		}
	}
	out := *want
	out.Ports = want.Ports.With(put, remove)
	return &out
}

// hold makes the Backend leave families alone, if it can, and returns them.
func (s *Syncer) hold(families []Family) []Family {
	if h, ok := s.backend.(FamilyHolder); ok {
		h.Hold(families)
		return families
	}
	return nil
}

// asKnown is want with the ServicePorts of some families as the kernel was last
// known to have them.
func (s *Syncer) asKnown(want *Snapshot, families []Family) *Snapshot {
	if len(families) == 0 {
		return want
	}
	var known Ports
	if s.lastGood != nil {
		known = s.lastGood.Ports
	}
	out := *want
	out.Ports = Replace(want.Ports, known, func(id PortID) bool { return slices.Contains(families, id.Family) })
	return &out
}

func idOf(old, cur *ServicePort) PortID {
	if cur != nil {
		return cur.ID
	}
	return old.ID
}

// settle notes what the kernel holds after a Sync of target, in which held
// stayed as it was, ended with err. It returns what that Sync was refused, and why
// it failed.
func (s *Syncer) settle(target *Snapshot, held []PortID, err error, now time.Time) (tried []PortError, failed error) {
	partial, families, ok := IsPartial(err)
	if err != nil && !ok {
		s.inForce = nil
		s.failures++
		s.cfg.Log.Error("programming the kernel failed; what it forwarded stays, and the next try repairs it",
			"error", err, "failures", s.failures)
		return nil, err
	}
	if partial != nil {
		tried = partial.Failed
	}
	s.refused.note(s.cfg.Log, target, held, tried, now)
	ids := make([]PortID, 0, len(tried))
	for _, f := range tried {
		ids = append(ids, f.ID)
	}
	s.inForce, s.failures = s.without(target, ids), 0
	if families != nil {
		s.inForce, failed = s.asKnown(s.inForce, families.families()), families
	}
	s.lastGood = s.inForce
	return tried, failed
}

// record notes how the kernel stands to what is wanted.
func (s *Syncer) record(want *Snapshot, err error, end time.Time) SyncStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Err, s.status.Refused, s.status.Failing = err, s.refused.list(), s.faults.list()
	if s.inForce == nil {
		if s.status.Behind.IsZero() { // an audit failed
			s.status.Behind = end
		}
		return s.status
	}
	s.status.LastPart = end
	if len(s.status.Failing) == 0 {
		s.status.Served, s.status.LastSync = want.Revision, end
		if len(s.status.Refused) == 0 {
			s.status.InForce = want.Revision
		}
	}
	s.status.Behind = time.Time{}
	if s.want != want || len(s.poke) > 0 { // a newer one came during the Sync
		s.status.Behind = end
	}
	return s.status
}
