package execs

import (
	"slices"
	"time"

	"github.com/workfort/nexus/agent/internal/safe"
)

// retire moves an entry to those that ended and drops the oldest.
func (g *Registry) retire(en *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	g.leaveSession(en.exec.session, en)
	en.since = time.Now()
	g.ended = append(g.ended, en)
	if len(g.ended) > keepEnded {
		g.dropEnded(oldest(g.ended))
	}
	g.forgetEnded(en, en.since.Add(2*holdFor))
}

// oldest is the first that nobody reads any more; where all are read, the first.
func oldest(list []*entry) *entry {
	for _, en := range list {
		if !en.exec.watched() {
			return en
		}
	}
	return list[0]
}

// forgetEnded sees to it that one that ended is forgotten in time; at trimAt what it keeps becomes less. The lock is held.
func (g *Registry) forgetEnded(en *entry, trimAt time.Time) {
	g.retired++
	last := g.retired
	time.AfterFunc(time.Until(trimAt), func() {
		defer safe.Recover()
		en.exec.trim(false)
		if g.quietSince(last) {
			giveBack()
		}
	})
	g.forgetAt(en.since.Add(keepFor), en, &g.ended, g.dropEnded)
}

// quietSince says whether nothing runs and nothing ended after that one.
func (g *Registry) quietSince(retired uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running == 0 && g.retired == retired
}

// forgetDigested is forgetEnded for one of which the digest alone is known. The lock is held.
func (g *Registry) forgetDigested(en *entry) {
	g.forgetAt(en.since.Add(keepDigestFor), en, &g.digested, g.dropDigested)
}

// forgetAt drops an entry of the list at that time, or as soon as nobody reads it any more.
func (g *Registry) forgetAt(at time.Time, en *entry, list *[]*entry, drop func(*entry)) {
	time.AfterFunc(time.Until(at), func() {
		defer safe.Recover()
		g.mu.Lock()
		defer g.mu.Unlock()
		switch {
		case !slices.Contains(*list, en): // dropped before
		case en.exec.watched():
			g.forgetAt(time.Now().Add(2*holdFor), en, list, drop)
		default:
			drop(en)
		}
	})
}

// dropEnded forgets one that ended. Of one with a digest it forgets the output, and the rest later. The lock is held.
func (g *Registry) dropEnded(en *entry) {
	g.ended = without(g.ended, en)
	if en.digest == "" {
		delete(g.known, en.exec.ID)
		return
	}
	en.exec.trim(true)
	en.since = time.Now()
	g.digested = append(g.digested, en)
	if len(g.digested) > keepDigests {
		g.dropDigested(oldest(g.digested))
	}
	g.forgetDigested(en)
}

func (g *Registry) dropDigested(en *entry) {
	delete(g.known, en.exec.ID)
	g.digested = without(g.digested, en)
}

// without takes an entry out of a list that has it.
func without(list []*entry, en *entry) []*entry {
	i := slices.Index(list, en)
	return slices.Delete(list, i, i+1)
}
