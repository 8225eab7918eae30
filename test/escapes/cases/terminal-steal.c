/* SPDX-License-Identifier: Apache-2.0 */
/* Makes the user's terminal its own, so that the user's keys are signals for the job and the shell loses it. */
#include "../attack.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

int main(void) {
  if (!isatty(0)) absent("the input is no terminal");
  int tty = open("/dev/tty", O_RDWR | O_NOCTTY);
  if (tty >= 0) worked("/dev/tty is the user's terminal");
  int error = errno;
  int line = 0, discipline = ioctl(0, TIOCSETD, &line), discipline_error = errno;
  if (setsid() >= 0 && ioctl(0, TIOCSCTTY, 1) == 0) worked("the user's terminal was taken");
  if (ioctl(0, TIOCSCTTY, 1) == 0) worked("the user's terminal was taken");
  held("/dev/tty: %s; TIOCSCTTY: %s; TIOCSETD: %s", error_name(error), error_name(errno), discipline < 0 ? error_name(discipline_error) : "done");
}
