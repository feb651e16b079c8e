package cluster

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"
	"gonum.org/v1/gonum/stat/distuv"
)

// Load is what a cluster asks of its API server.
type Load struct {
	Agents  float64
	Changes float64 // a second
}

// terms are what a cost is made of: something in any case, something for each
// change, for each agent, and for each change that each agent is told of.
func (l Load) terms() []float64 { return []float64{1, l.Changes, l.Agents, l.Agents * l.Changes} }

// Model is a cost as a sum of shares.
type Model struct {
	What, Unit string
	// Shares are of the terms of Load. They are not negative: no load is a help.
	Base, PerChange, PerAgent, PerAgentAndChange float64
	// Points are how many were measured, and Residual is the usual distance of one from
	// the Model. R2 is the part of their variance that the Model explains.
	Points       int
	Residual, R2 float64

	used    []int      // terms that are not zero
	inverse *mat.Dense // of the terms' products
}

// Fit finds the Model of a cost with the least squares. If no load has changes, no
// share is of changes.
func Fit(what, unit string, at []Load, cost []float64) (*Model, error) {
	m := &Model{What: what, Unit: unit, Points: len(at), used: []int{0, 1, 2, 3}}
	if !slices.ContainsFunc(at, func(l Load) bool { return l.Changes > 0 }) {
		m.used = []int{0, 2}
	}
	for {
		if len(at) <= len(m.used) {
			return nil, fmt.Errorf("fitting %s: %d points are too few for %d shares", what, len(at), len(m.used))
		}
		shares, err := m.solve(at, cost)
		if err != nil {
			return nil, fmt.Errorf("fitting %s: %w", what, err)
		}
		// A share below zero is noise around zero: it is left out, and the rest fitted.
		worst, least := -1, 0.0
		for i, s := range shares {
			if sure := s / math.Sqrt(m.inverse.At(i, i)); sure < least {
				worst, least = i, sure
			}
		}
		if worst < 0 {
			break
		}
		m.used = slices.Delete(m.used, worst, worst+1)
		if len(m.used) == 0 {
			return nil, fmt.Errorf("fitting %s: nothing costs anything", what)
		}
	}
	m.judge(at, cost)
	return m, nil
}

// row is the used terms of a load.
func (m *Model) row(l Load) []float64 {
	all := l.terms()
	out := make([]float64, len(m.used))
	for i, t := range m.used {
		out[i] = all[t]
	}
	return out
}

// solve finds the shares of the used terms, and keeps them.
func (m *Model) solve(at []Load, cost []float64) ([]float64, error) {
	rows := mat.NewDense(len(at), len(m.used), nil)
	for i, l := range at {
		rows.SetRow(i, m.row(l))
	}
	var products, inverse mat.Dense
	products.Mul(rows.T(), rows)
	if err := inverse.Inverse(&products); err != nil && !errors.As(err, new(mat.Condition)) {
		return nil, err
	} else if math.IsInf(float64(mat.Cond(&products, 1)), 1) {
		return nil, errors.New("the points differ in too little")
	}
	m.inverse = &inverse
	var right, shares mat.VecDense
	right.MulVec(rows.T(), mat.NewVecDense(len(cost), cost))
	shares.MulVec(&inverse, &right)
	m.Base, m.PerChange, m.PerAgent, m.PerAgentAndChange = 0, 0, 0, 0
	all := []*float64{&m.Base, &m.PerChange, &m.PerAgent, &m.PerAgentAndChange}
	for i, t := range m.used {
		*all[t] = shares.AtVec(i)
	}
	return shares.RawVector().Data, nil
}

// judge finds how well the Model fits.
func (m *Model) judge(at []Load, cost []float64) {
	var mean, squares, spread float64
	for _, c := range cost {
		mean += c / float64(len(cost))
	}
	for i, l := range at {
		off := cost[i] - m.At(l)
		squares += off * off
		spread += (cost[i] - mean) * (cost[i] - mean)
	}
	m.Residual = math.Sqrt(squares / float64(len(at)-len(m.used)))
	if spread > 0 {
		m.R2 = 1 - squares/spread
	}
}

// At returns the cost of a load.
func (m *Model) At(l Load) float64 {
	t := l.terms()
	return m.Base*t[0] + m.PerChange*t[1] + m.PerAgent*t[2] + m.PerAgentAndChange*t[3]
}

// Margin returns how far from At one more point is with 95 % certainty, if the cost
// goes on as it did where it was measured.
func (m *Model) Margin(l Load) float64 {
	const certainty = 0.975 // on each side
	x := mat.NewVecDense(len(m.used), m.row(l))
	t := distuv.StudentsT{Mu: 0, Sigma: 1, Nu: float64(m.Points - len(m.used))}.Quantile(certainty)
	return t * m.Residual * math.Sqrt(1+mat.Inner(x, m.inverse, x))
}

// Most returns how many agents a limit has room for at this many changes a second.
func (m *Model) Most(limit, changes float64) float64 {
	each := m.PerAgent + m.PerAgentAndChange*changes
	if each <= 0 {
		return math.Inf(1)
	}
	return max(0, (limit-m.Base-m.PerChange*changes)/each)
}
