// Package restore calls iptables: it reads tables with iptables-save and changes them with iptables-restore. It knows tables, chains and rules, and no Service.
package restore
