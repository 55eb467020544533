package execs

import (
	"bytes"
	"math/rand"
	"testing"
)

// The ring against a plain slice, with seeded random lengths.
func TestRing(t *testing.T) {
	for seed := range int64(20) {
		rnd := rand.New(rand.NewSource(seed))
		var r ring
		var all []byte
		for range 60 {
			p := make([]byte, rnd.Intn(1+rnd.Intn(ringSize)))
			rnd.Read(p)
			r.append(p)
			all = append(all, p...)
			if r.end != uint64(len(all)) || r.end-r.start != uint64(min(len(all), ringSize)) {
				t.Fatalf("seed %d: holds [%d,%d) of %d", seed, r.start, r.end, len(all))
			}
			from := r.start + uint64(rnd.Int63n(int64(r.end-r.start)+1))
			got := make([]byte, rnd.Intn(ringSize+10))
			n := r.copyAt(got, from)
			want := all[from:min(len(all), int(from)+len(got))]
			if !bytes.Equal(got[:n], want) {
				t.Fatalf("seed %d: %d bytes from %d differ", seed, n, from)
			}
		}
	}
}

func TestRingIsSmallForLittle(t *testing.T) {
	var r ring
	r.append([]byte("hello"))
	if len(r.buf) > 4<<10 {
		t.Errorf("%d bytes for 5", len(r.buf))
	}
}

func TestRingGivesBack(t *testing.T) {
	var r ring
	all := make([]byte, 3*ringSize/2)
	rand.New(rand.NewSource(1)).Read(all)
	r.append(all[:ringSize])
	r.append(all[ringSize:])
	r.trim(unread)
	got := make([]byte, ringSize)
	n := r.copyAt(got, r.start)
	if r.end != uint64(len(all)) || len(r.buf) > unread || !bytes.Equal(got[:n], all[len(all)-unread:]) {
		t.Errorf("keeps %d bytes of [%d,%d)", n, r.start, r.end)
	}
}
