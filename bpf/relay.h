/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* What the relay's thread tells the program that serves a cell's network namespace. */
#ifndef AMBIT_RELAY_H
#define AMBIT_RELAY_H

#include "wire-types.h"

/*
 * One flow of datagrams that is open. Its answers come from the relay's own socket and must reach the client's, which the
 * program would else hand to the relay as a question. Addresses in network order, IPv4 in the first word.
 */
struct ambit_answer {
  __u32 client[4];
  __u32 dialled[4];
  __u16 client_port;  /* host order */
  __u16 dialled_port;
};
/* More than a cell can have flows. */
#define AMBIT_ANSWERS 1024

#endif
