/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* __u8 to __u64 for a header that eBPF programs (which have them from vmlinux.h) and the addon both include. */
#ifndef AMBIT_WIRE_TYPES_H
#define AMBIT_WIRE_TYPES_H
#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif
#endif
