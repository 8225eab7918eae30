/* SPDX-License-Identifier: Apache-2.0 */
/* Netlink beside the one for addresses and routes: firewall, audit, device events, sockets of others, generic. */
#include "../attack.h"
#include <linux/netlink.h>
#include <sys/socket.h>

int main(void) {
  static const int protocols[] = {NETLINK_NETFILTER, NETLINK_AUDIT, NETLINK_KOBJECT_UEVENT, NETLINK_SOCK_DIAG, NETLINK_GENERIC, NETLINK_XFRM, NETLINK_CONNECTOR};
  int opened = 0;
  for (unsigned i = 0; i < sizeof protocols / sizeof *protocols; i++) opened += socket(AF_NETLINK, SOCK_RAW, protocols[i]) >= 0;
  opened > 0 ? worked("%d kinds of netlink were opened", opened) : held("seven kinds of netlink: %s", error_name(errno));
}
