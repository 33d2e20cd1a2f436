/** Where the configuration is unless told otherwise; here and not read from `config/`, whose parser takes time to load. */
export const defaultConfigPath = '/etc/stillpoint/config.yaml';
