// Package nft keeps one nftables table of ours: it reads the table back, and writes sets, rules and elements in single transactions.
//
// It speaks netlink only and executes no program. Of other programs' tables it
// sees no more than their names. A rule's comment holds a signature of the
// rule, so that a rule which differs from what was written is found without
// understanding it.
package nft
